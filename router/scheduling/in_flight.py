"""The batches that are away at the replicas, and what a call costs beside the model."""

from __future__ import annotations

from bisect import bisect_left, insort_right
from heapq import heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.scheduling.replica_set import Member


class Hop:
    """What a call costs beside the model, ms: its mean, and the mean deviation from that (RFC 6298)."""

    def __init__(self) -> None:
        self.mean_ms, self.deviation_ms = 1.0, 0.5

    def learn(self, ms: float) -> None:
        # One stall must not shut the door on the requests of the next second.
        ms = min(ms, self.mean_ms + 8.0 * self.deviation_ms)
        self.deviation_ms += 0.05 * (abs(ms - self.mean_ms) - self.deviation_ms)
        self.mean_ms += 0.05 * (ms - self.mean_ms)


class Flight:
    """One batch that is away: expected to end on its replica at ``end_ms``, and late beyond what can be
    explained ``patience_ms`` later, at ``silent_ms``."""

    __slots__ = ("counted", "end_ms", "member", "patience_ms", "sent_ms", "silent_ms")

    def __init__(self, member: Member, sent_ms: float, end_ms: float, patience_ms: float) -> None:
        self.member, self.sent_ms, self.end_ms, self.patience_ms = member, sent_ms, end_ms, patience_ms
        self.silent_ms = end_ms + patience_ms
        #: Whether it is part of what remains for the replicas of usual pace.
        self.counted = not member.apart


class Flights:
    """The batches that are away, by the moment at which each is expected to end on its replica."""

    def __init__(self) -> None:
        self._of: dict[int, Flight] = {}
        self._ends: list[float] = []
        self._sum = 0.0
        #: When each will be silent, a heap; some of them have been moved since, or are back.
        self.due: list[tuple[float, int]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._of)

    def add(self, flight: Flight) -> int:
        self._number += 1
        self._of[self._number] = flight
        if flight.counted:
            insort_right(self._ends, flight.end_ms)
            self._sum += flight.end_ms
        heappush(self.due, (flight.silent_ms, self._number))
        return self._number

    def remove(self, number: int) -> Flight | None:
        """The flight; None where it is gone already."""
        flight = self._of.pop(number, None)
        if flight is not None and flight.counted:
            del self._ends[bisect_left(self._ends, flight.end_ms)]
            self._sum = self._sum - flight.end_ms if self._ends else 0.0
        if not self._of:
            self.due.clear()
        return flight

    def more_patience(self, number: int, now_ms: float) -> None:
        """The one ahead of it is back at last: its own time begins now."""
        flight = self._of[number]
        flight.silent_ms = max(flight.silent_ms, now_ms + flight.patience_ms)
        heappush(self.due, (flight.silent_ms, number))

    def silent(self, now_ms: float) -> Flight | None:
        """One that should have been back long ago, if there is any that was not told yet."""
        due = self.due
        while due and due[0][0] <= now_ms:
            at_ms, number = heappop(due)
            flight = self._of.get(number)
            if flight is not None and flight.silent_ms == at_ms:
                return flight
        return None

    def remaining_ms(self, now_ms: float) -> float:
        """The work away at replicas of usual pace, added up; what is overdue counts as about to end."""
        if not self._ends:
            return 0.0
        overdue = bisect_left(self._ends, now_ms)
        rest = self._sum - sum(self._ends[:overdue]) if overdue else self._sum
        return rest - (len(self._ends) - overdue) * now_ms
