"""The least of the values seen lately. Pure."""

from __future__ import annotations

import math

from router.scheduling.tuning import RECENT_LEAST_WINDOW


class RecentLeast:
    """``value`` is the least of the last 64 to 127 values, and ``start`` until there was one."""

    def __init__(self, start: float) -> None:
        self._start, self._before, self._now, self._seen = start, math.inf, math.inf, 0

    @property
    def value(self) -> float:
        least = min(self._before, self._now)
        return self._start if math.isinf(least) else least

    def add(self, value: float) -> None:
        self._now, self._seen = min(self._now, value), self._seen + 1
        if self._seen == RECENT_LEAST_WINDOW:
            self._before, self._now, self._seen = self._now, math.inf, 0
