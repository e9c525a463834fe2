"""The batches that are away at the replicas, and what a call costs beside the model."""

from __future__ import annotations

from bisect import bisect_left, insort_right


class Hop:
    """What a call costs beside the model, ms: its mean, and the mean deviation from that (RFC 6298)."""

    def __init__(self) -> None:
        self.mean_ms, self._deviation_ms = 1.0, 0.5

    def learn(self, ms: float) -> None:
        # One stall must not shut the door on the requests of the next second.
        ms = min(ms, self.mean_ms + 8.0 * self._deviation_ms)
        self._deviation_ms += 0.05 * (abs(ms - self.mean_ms) - self._deviation_ms)
        self.mean_ms += 0.05 * (ms - self.mean_ms)


class Flights:
    """The batches that are away, by the moment at which each is expected to end on its replica."""

    def __init__(self) -> None:
        self._ends: list[float] = []
        self._of: dict[int, tuple[float, float]] = {}
        self._sum = 0.0
        self._number = 0

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, sent_ms: float, end_ms: float) -> int:
        self._number += 1
        self._of[self._number] = (sent_ms, end_ms)
        insort_right(self._ends, end_ms)
        self._sum += end_ms
        return self._number

    def remove(self, number: int) -> float | None:
        """When it was sent; None where it is gone already."""
        sent_ms, end_ms = self._of.pop(number, (None, 0.0))
        if sent_ms is not None:
            del self._ends[bisect_left(self._ends, end_ms)]
            self._sum = self._sum - end_ms if self._ends else 0.0
        return sent_ms

    def remaining_ms(self, now_ms: float) -> float:
        """The work that is away, added up; what is overdue counts as about to end."""
        if not self._ends:
            return 0.0
        overdue = bisect_left(self._ends, now_ms)
        rest = self._sum - sum(self._ends[:overdue]) if overdue else self._sum
        return rest - (len(self._ends) - overdue) * now_ms

    def free_at_ms(self, replicas: int) -> float:
        """When a replica is predicted to be free; 0 where one is idle."""
        behind = len(self._ends) - replicas
        return self._ends[behind] if behind >= 0 else 0.0
