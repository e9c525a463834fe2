"""Who is next: tenants by start-time fair queueing, each tenant's jobs by deadline, ties as they came.

The claim script (``lua/claim.lua``) does the same beside the data; this is the in-memory form. A tenant's
virtual time advances by rows over weight as its jobs are taken, and the tenant that is furthest behind
goes next. One that comes back joins at the present virtual time: idleness earns no credit.

A line is a heap. A job that leaves from its middle only lets go of its entry, which is thrown away when it
comes to the front, or with the others when they outnumber the living: so every step costs O(log n).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from math import inf

from workers.queue import contract
from workers.queue.contract import QueueSettings
from workers.queue.memory.record import Entry, JobRecord

_SPARE = 64


@dataclass(slots=True)
class _TenantQueue:
    """One tenant's waiting jobs; ``live`` of the heap's entries still belong to a job in line."""

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
    """Waiting jobs in one line per tenant; a tenant without any has no line and no virtual time."""

    def __init__(self) -> None:
        self._lines: dict[str, _TenantQueue] = {}
        self._order: list[tuple[float, bytes, str]] = []
        self._now = 0.0
        self._entered = 0

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, record: JobRecord) -> None:
        tenant = record.job.tenant
        line = self._lines.get(tenant)
        if line is None:
            line = self._lines[tenant] = _TenantQueue(self._now)
            insort(self._order, (line.virtual, tenant.encode(), tenant))
        self._entered += 1
        record.entry = (record.deadline_ms, record.sequence, self._entered, record)
        heappush(line.heap, record.entry)
        line.live += 1

    def remove(self, record: JobRecord) -> None:
        """Take a job out of its line, if it stands in one."""
        if record.entry is None:
            return
        record.entry = None
        tenant = record.job.tenant
        line = self._lines[tenant]
        line.live -= 1
        if line.live:
            line.tidy()
        else:
            self._leave_order(tenant, line)
            del self._lines[tenant]

    def tenants(self) -> list[str]:
        return list(self._lines)

    def next_tenants(self, n: int) -> list[str]:
        """The ``n`` that are furthest behind."""
        return [tenant for _, _, tenant in self._order[: max(0, n)]]

    def earliest_deadline_ms(self, tenant: str | None = None) -> int | None:
        """The earliest in one tenant's line, or in all of them; ``None`` where nobody waits."""
        lines = self._lines.values() if tenant is None else filter(None, [self._lines.get(tenant)])
        return min((line.head().deadline_ms for line in lines), default=None)

    def take_late(self, tenant: str, now_ms: int, limit: float = inf) -> list[JobRecord]:
        """Take out those of a tenant whose deadline has passed, the first ``limit`` of them."""
        late: list[JobRecord] = []
        while len(late) < limit and (line := self._lines.get(tenant)) is not None:
            record = line.head()
            if record.deadline_ms > now_ms:
                break
            self.remove(record)
            late.append(record)
        return late

    def in_time(self, now_ms: int) -> Iterator[JobRecord]:
        """Those whose deadline has not passed, earliest first, whoever their tenant.

        The heaps are walked, not popped: O(log n) for each job that is asked for.
        """
        heaps = [line.heap for line in self._lines.values()]
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

        A tenant whose first job is late has no turn. A job that lost its workers before goes alone, so that
        it takes no other down with it.
        """
        turns = [(self._lines[t].virtual, place, t) for place, t in enumerate(self.next_tenants(n))]
        passed: dict[str, float] = {}
        taken: list[JobRecord] = []
        rows = size = 0
        while turns and len(taken) < n:
            virtual, place, tenant = turns[0]
            record = self._lines[tenant].head()
            suspect = record.lost >= settings.suspect_after
            too_much = max_rows is not None and rows + record.job.rows > max_rows
            if taken and (
                suspect or too_much or size + len(record.job.payload) > contract.MAX_BYTES_PER_CLAIM
            ):
                break
            if record.deadline_ms <= now_ms:
                heappop(turns)
                continue
            self._now = max(self._now, virtual)
            self.remove(record)
            taken.append(record)
            rows += record.job.rows
            size += len(record.job.payload)
            if tenant in self._lines:
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
        line = self._lines[tenant]
        self._leave_order(tenant, line)
        line.virtual = virtual
        insort(self._order, (virtual, tenant.encode(), tenant))

    def _leave_order(self, tenant: str, line: _TenantQueue) -> None:
        del self._order[bisect_left(self._order, (line.virtual, tenant.encode(), tenant))]


def _is_current(entry: Entry) -> bool:
    """Whether the entry is where its job waits, and not a place that it has left."""
    return entry[3].entry is entry
