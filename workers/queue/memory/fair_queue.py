"""Which job is next: tenants by start-time fair queueing, each tenant's jobs by deadline, ties by arrival.

The claim script (``lua/claim.lua``) does the same on the server. A tenant's virtual time advances by rows
over weight as its jobs are taken, and the tenant that is furthest behind is next. One that comes back joins
at the present virtual time: idleness earns no credit.

A tenant's queue is a heap. A job that leaves from its middle leaves a stale entry, which is removed when it
comes to the front, or together with the others when most entries are stale: every step costs O(log n).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from math import inf

from workers.queue import limits
from workers.queue.memory.record import Entry, JobRecord
from workers.queue.settings import QueueSettings

_SPARE = 64


@dataclass(slots=True)
class _TenantQueue:
    """One tenant's waiting jobs; ``live`` of the heap's entries belong to a job that still waits."""

    virtual: float
    heap: list[Entry] = field(default_factory=list)
    live: int = 0

    def head(self) -> JobRecord:
        while not _is_current(self.heap[0]):
            heappop(self.heap)
        return self.heap[0][3]

    def tidy(self) -> None:
        if len(self.heap) > 2 * self.live + _SPARE:
            self.heap = [entry for entry in self.heap if _is_current(entry)]
            heapify(self.heap)


class FairQueue:
    """Waiting jobs in one queue per tenant; a tenant without any has no queue and no virtual time."""

    def __init__(self) -> None:
        self._queues: dict[str, _TenantQueue] = {}
        self._order: list[tuple[float, bytes, str]] = []
        self._now = 0.0
        self._entered = 0

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, record: JobRecord) -> None:
        tenant = record.job.tenant
        queue = self._queues.get(tenant)
        if queue is None:
            queue = self._queues[tenant] = _TenantQueue(self._now)
            insort(self._order, (queue.virtual, tenant.encode(), tenant))
        self._entered += 1
        record.entry = (record.deadline_ms, record.sequence, self._entered, record)
        heappush(queue.heap, record.entry)
        queue.live += 1

    def remove(self, record: JobRecord) -> None:
        """Take a job out of its tenant's queue, if it is in one."""
        if record.entry is None:
            return
        record.entry = None
        tenant = record.job.tenant
        queue = self._queues[tenant]
        queue.live -= 1
        if queue.live:
            queue.tidy()
        else:
            self._leave_order(tenant, queue)
            del self._queues[tenant]

    def tenants(self) -> list[str]:
        return list(self._queues)

    def next_tenants(self, n: int) -> list[str]:
        """The ``n`` that are furthest behind."""
        return [tenant for _, _, tenant in self._order[: max(0, n)]]

    def earliest_deadline_ms(self, tenant: str | None = None) -> int | None:
        """The earliest of one tenant, or of all of them; ``None`` where no job waits."""
        queues = self._queues.values() if tenant is None else filter(None, [self._queues.get(tenant)])
        return min((queue.head().deadline_ms for queue in queues), default=None)

    def take_late(self, tenant: str, now_ms: int, limit: float = inf) -> list[JobRecord]:
        """Take out those of a tenant whose deadline has passed, the first ``limit`` of them."""
        late: list[JobRecord] = []
        while len(late) < limit and (queue := self._queues.get(tenant)) is not None:
            record = queue.head()
            if record.deadline_ms > now_ms:
                break
            self.remove(record)
            late.append(record)
        return late

    def in_time(self, now_ms: int) -> Iterator[JobRecord]:
        """Those whose deadline has not passed, earliest first, of all tenants.

        The heaps are walked, not popped: O(log n) for each job that is asked for.
        """
        heaps = [queue.heap for queue in self._queues.values()]
        front = [(heap[0], number, 0) for number, heap in enumerate(heaps)]
        heapify(front)
        while front:
            entry, number, at = heappop(front)
            heap = heaps[number]
            for child in (2 * at + 1, 2 * at + 2):
                if child < len(heap):
                    heappush(front, (heap[child], number, child))
            if _is_current(entry) and entry[0] > now_ms:
                yield entry[3]

    def take(self, n: int, max_rows: int | None, settings: QueueSettings, now_ms: int) -> list[JobRecord]:
        """Take out up to ``n`` jobs, ``max_rows`` rows in all (always at least one job).

        A tenant whose first job is late has no turn. A job that lost its workers before, or hung one, is
        taken alone, so that it takes no other down with it.
        """
        turns = [(self._queues[t].virtual, place, t) for place, t in enumerate(self.next_tenants(n))]
        passed: dict[str, float] = {}
        taken: list[JobRecord] = []
        rows = size = 0
        while turns and len(taken) < n:
            virtual, place, tenant = turns[0]
            record = self._queues[tenant].head()
            suspect = record.given_up or record.lost >= settings.suspect_after
            too_much = max_rows is not None and rows + record.job.rows > max_rows
            if taken and (suspect or too_much or size + len(record.job.payload) > limits.MAX_BYTES_PER_CLAIM):
                break
            if record.deadline_ms <= now_ms:
                heappop(turns)
                continue
            self._now = max(self._now, virtual)
            self.remove(record)
            taken.append(record)
            rows += record.job.rows
            size += len(record.job.payload)
            if tenant in self._queues:
                passed[tenant] = virtual + record.job.rows / float(settings.weights.get(tenant, 1))
                heapreplace(turns, (passed[tenant], place, tenant))
            else:
                passed.pop(tenant, None)
                heappop(turns)
            if suspect:
                break
        for tenant, virtual in passed.items():
            self._advance(tenant, virtual)
        return taken

    def _advance(self, tenant: str, virtual: float) -> None:
        queue = self._queues[tenant]
        self._leave_order(tenant, queue)
        queue.virtual = virtual
        insort(self._order, (virtual, tenant.encode(), tenant))

    def _leave_order(self, tenant: str, queue: _TenantQueue) -> None:
        del self._order[bisect_left(self._order, (queue.virtual, tenant.encode(), tenant))]


def _is_current(entry: Entry) -> bool:
    """Whether the entry's job still waits there."""
    return entry[3].entry is entry
