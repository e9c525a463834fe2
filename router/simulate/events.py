"""Virtual time: what is to happen when, in order; ties in the order they were made."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Events:
    """A clock that moves when the next event is due. Times are milliseconds from the start."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._made = 0

    def at(self, when_ms: float, action: Callable[..., None], *args: Any) -> None:
        self._made += 1
        heappush(self._due, (when_ms, self._made, action, args))

    @property
    def next_ms(self) -> float:
        """When the next event is due; infinity where there is none."""
        return self._due[0][0] if self._due else float("inf")

    def step(self) -> None:
        """Move to the next event and let it happen."""
        when_ms, _, action, args = heappop(self._due)
        if when_ms > self.now_ms:
            self.now_ms = when_ms
        action(*args)
