"""Logs a failure that repeats without filling the log."""

from __future__ import annotations

import logging

logger = logging.getLogger("ray.serve")


class FailureLog:
    """Counts failures in a row, and logs the 1st, 2nd, 4th, 8th and so on."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.count = 0

    def add(self, error: Exception) -> None:
        self.count += 1
        if self.count & (self.count - 1) == 0:
            logger.warning("%s (%d times): %s: %s", self._what, self.count, type(error).__name__, error)

    def clear(self) -> None:
        self.count = 0

    def pause_s(self, first_s: float, longest_s: float) -> float:
        """How long to wait before the next try: doubled with each failure."""
        return min(longest_s, first_s * 2.0 ** min(max(0, self.count - 1), 20))
