"""Who is next: tenants by start-time fair queueing, each tenant's jobs by deadline, ties as they came.

The claim script (``lua/claim.lua``) does the same beside the data; this is the in-memory form. A tenant's
virtual time advances by rows over weight as its jobs are taken, and the tenant that is furthest behind
goes next. One that comes back joins at the present virtual time: idleness earns no credit.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping

from workers.memory_record import Record
from workers.queue import QueueSettings

Place = tuple[int, int, str]


class FairLines:
    """Waiting jobs in one line per tenant; a tenant without any has no line and no virtual time."""

    def __init__(self) -> None:
        self.by_tenant: dict[str, list[Place]] = {}
        self._virtual: dict[str, float] = {}
        self._now = 0.0

    def add(self, record: Record) -> None:
        tenant = record.job.tenant
        insort(self.by_tenant.setdefault(tenant, []), record.place)
        self._virtual.setdefault(tenant, self._now)

    def remove(self, record: Record) -> None:
        tenant = record.job.tenant
        line = self.by_tenant[tenant]
        del line[bisect_left(line, record.place)]
        if not line:
            del self.by_tenant[tenant], self._virtual[tenant]

    def next_tenants(self, n: int) -> list[str]:
        """The ``n`` that are furthest behind."""
        return sorted(self._virtual, key=lambda t: (self._virtual[t], t.encode()))[: max(0, n)]

    def take(
        self, n: int, max_rows: int | None, records: Mapping[str, Record], settings: QueueSettings
    ) -> list[Record]:
        """Choose up to ``n`` jobs; they stay in line until they are removed.

        A job that lost its workers before goes alone, so that it takes no other down with it.
        """
        virtual = {tenant: self._virtual[tenant] for tenant in self.next_tenants(n)}
        ahead = dict.fromkeys(virtual, 0)
        taken: list[Record] = []
        rows = 0
        while len(taken) < n and virtual:
            tenant = min(virtual, key=lambda t: virtual[t])
            line = self.by_tenant[tenant]
            if ahead[tenant] == len(line):
                self._virtual[tenant] = virtual.pop(tenant)
                continue
            record = records[line[ahead[tenant]][2]]
            suspect = record.lost >= settings.suspect_after
            if taken and (suspect or (max_rows is not None and rows + record.job.rows > max_rows)):
                break
            self._now = max(self._now, virtual[tenant])
            taken.append(record)
            rows += record.job.rows
            ahead[tenant] += 1
            virtual[tenant] += record.job.rows / float(settings.weights.get(tenant, 1))
            if suspect:
                break
        self._virtual.update(virtual)
        return taken
