"""The batches that are away at the replicas, and what a call costs beside the model."""

from __future__ import annotations

from bisect import bisect_left, insort_right
from heapq import heappop, heappush

from router.scheduling.replica_state import InFlightBatch


class Hop:
    """What a call costs beside the model, ms: its mean, and the mean deviation from that (RFC 6298)."""

    def __init__(self) -> None:
        self.mean_ms, self.deviation_ms = 1.0, 0.5

    def learn(self, ms: float) -> None:
        # One stall must not shut the door on the requests of the next second.
        ms = min(ms, self.mean_ms + 8.0 * self.deviation_ms)
        self.deviation_ms += 0.05 * (abs(ms - self.mean_ms) - self.deviation_ms)
        self.mean_ms += 0.05 * (ms - self.mean_ms)


class InFlightBatches:
    """The batches that are away, by the moment at which each is expected to end on its replica."""

    def __init__(self) -> None:
        self._of: dict[int, InFlightBatch] = {}
        self._ends: list[float] = []
        self._sum = 0.0
        #: When each will be silent, a heap; some of them have been moved since, or are back.
        self.due: list[tuple[float, int]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._of)

    def add(self, batch: InFlightBatch) -> int:
        self._number += 1
        self._of[self._number] = batch
        if batch.counted:
            insort_right(self._ends, batch.end_ms)
            self._sum += batch.end_ms
        heappush(self.due, (batch.silent_ms, self._number))
        return self._number

    def remove(self, number: int) -> InFlightBatch | None:
        """The batch; None where it is gone already."""
        batch = self._of.pop(number, None)
        if batch is not None and batch.counted:
            del self._ends[bisect_left(self._ends, batch.end_ms)]
            self._sum = self._sum - batch.end_ms if self._ends else 0.0
        if not self._of:
            self.due.clear()
        return batch

    def more_patience(self, number: int, now_ms: float) -> None:
        """The one ahead of it is back at last: its own time begins now."""
        batch = self._of[number]
        batch.silent_ms = max(batch.silent_ms, now_ms + batch.patience_ms)
        heappush(self.due, (batch.silent_ms, number))

    def silent(self, now_ms: float) -> InFlightBatch | None:
        """One that should have been back long ago, if there is any that was not told yet."""
        due = self.due
        while due and due[0][0] <= now_ms:
            at_ms, number = heappop(due)
            batch = self._of.get(number)
            if batch is not None and batch.silent_ms == at_ms:
                return batch
        return None

    def remaining_ms(self, now_ms: float) -> float:
        """The work away at replicas of usual pace, added up; what is overdue counts as about to end."""
        if not self._ends:
            return 0.0
        overdue = bisect_left(self._ends, now_ms)
        rest = self._sum - sum(self._ends[:overdue]) if overdue else self._sum
        return rest - (len(self._ends) - overdue) * now_ms
