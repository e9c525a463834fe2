"""What was asked for lately: the shortest budget, and how much of it."""

from __future__ import annotations

import math

from router.scheduling.tuning import DEMAND_WINDOW_MS, URGENCY_WINDOW_MS


class Urgency:
    """The shortest budget that was asked for lately."""

    def __init__(self) -> None:
        self._now_ms = self._before_ms = math.inf
        self._turns_at_ms = -math.inf

    def note(self, budget_ms: float, now_ms: float) -> None:
        if now_ms >= self._turns_at_ms:
            idle = now_ms >= self._turns_at_ms + URGENCY_WINDOW_MS
            self._before_ms = math.inf if idle else self._now_ms
            self._now_ms, self._turns_at_ms = math.inf, now_ms + URGENCY_WINDOW_MS
        if budget_ms < self._now_ms:
            self._now_ms = budget_ms

    @property
    def shortest_ms(self) -> float:
        return min(self._now_ms, self._before_ms)


class Demand:
    """How many rows a second are asked for, by an exponential window."""

    def __init__(self) -> None:
        self.rows_per_s = 0.0
        self._at_ms = self._asked_ms = -math.inf

    def lately(self, now_ms: float) -> bool:
        """Whether anything was asked for in the last seconds."""
        return now_ms - self._asked_ms < URGENCY_WINDOW_MS

    def note(self, rows: int, now_ms: float) -> None:
        kept = math.exp((self._at_ms - now_ms) / DEMAND_WINDOW_MS)
        self.rows_per_s = self.rows_per_s * kept + rows * 1_000.0 / DEMAND_WINDOW_MS
        self._at_ms = now_ms
        if rows:
            self._asked_ms = now_ms
