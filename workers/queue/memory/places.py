"""Where each unfinished job of the in-memory queue is: waiting, in a backoff, or leased to a worker.

Only this module changes these three, so their counts agree by construction.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from workers.queue.job import JobState
from workers.queue.memory.fair_queue import FairQueue
from workers.queue.memory.record import JobRecord

_SPARE = 64


class Places:
    """``waiting_rows`` counts the rows of jobs that wait or are in a backoff."""

    def __init__(self) -> None:
        self.waiting = FairQueue()
        self.leased = 0
        self.delayed = 0
        self.waiting_rows = 0
        self._times: list[tuple[int, int, JobRecord]] = []
        self._noted = 0
        self._kept = 0

    def wait(self, record: JobRecord) -> None:
        """Put a job that is nowhere yet among those that wait."""
        record.state, record.token, record.not_before_ms = JobState.PENDING, None, None
        self.waiting_rows += record.job.rows
        self.waiting.add(record)

    def delay(self, record: JobRecord, until_ms: int) -> None:
        """Put a job that is nowhere yet in a backoff."""
        record.state, record.token, record.not_before_ms = JobState.PENDING, None, until_ms
        self.waiting_rows += record.job.rows
        self.delayed += 1
        self._note(until_ms, record)

    def lease(self, record: JobRecord, token: str, until_ms: int) -> None:
        """Lease a job that is nowhere yet to a worker."""
        record.state, record.token, record.lease_until_ms = JobState.LEASED, token, until_ms
        self.leased += 1
        self._note(until_ms, record)

    def renew(self, record: JobRecord, until_ms: int) -> None:
        record.lease_until_ms = until_ms
        self._note(until_ms, record)

    def leave(self, record: JobRecord) -> None:
        """Take a job from where it is."""
        if record.state is JobState.LEASED:
            self.leased -= 1
            return
        self.waiting_rows -= record.job.rows
        if record.not_before_ms is None:
            self.waiting.remove(record)
        else:
            self.delayed -= 1
            record.not_before_ms = None

    def next_time_ms(self) -> int | None:
        """When the next lease runs out or the next backoff ends."""
        while self._times:
            at_ms, _, record = self._times[0]
            if _due_ms(record) == at_ms:
                return at_ms
            heappop(self._times)
        return None

    def take_due(self, now_ms: int) -> JobRecord | None:
        """A job whose lease has run out or whose backoff is over, to be moved before the next call."""
        at_ms = self.next_time_ms()
        return None if at_ms is None or at_ms > now_ms else heappop(self._times)[2]

    def _note(self, at_ms: int, record: JobRecord) -> None:
        self._noted += 1
        heappush(self._times, (at_ms, self._noted, record))
        if len(self._times) > 2 * self._kept + _SPARE:  # most of them belong to leases that were settled
            current = {entry[2].job.id: entry for entry in self._times if _due_ms(entry[2]) == entry[0]}
            self._times = list(current.values())
            heapify(self._times)
            self._kept = len(self._times)


def _due_ms(record: JobRecord) -> int | None:
    if record.not_before_ms is not None:
        return record.not_before_ms
    return record.lease_until_ms if record.state is JobState.LEASED else None
