"""What the in-memory queue counts as it goes: what is unfinished, what has ended, and how fast."""

from __future__ import annotations

import math

from workers.queue.contract import TOTALS
from workers.queue.job import JobState, NewJob
from workers.queue.limits import (
    MAX_ROOM_MS,
    MIN_ROOM_MS,
    RATE_MS,
    RATE_PAUSE_MS,
    UNKNOWN_ROOM_MS,
    per_ms,
    rows_per_s,
)
from workers.queue.settings import QueueSettings


class QueueCounts:
    """Running counts: unfinished ``jobs``, ``rows``, ``bytes``, each tenant's share of them, ``totals``.

    Rates decay as in ``note_rate`` of ``lua/lib.lua``.
    """

    def __init__(self) -> None:
        self.jobs = self.rows = self.bytes = 0
        self.totals = dict.fromkeys(TOTALS, 0)
        self._tenants: dict[str, tuple[int, int]] = {}
        self._ended = (0.0, 0.0, 0.0)
        self._last_ms: int | None = None
        self._began_ms = 0

    def enter(self, job: NewJob) -> None:
        """A job was accepted, or called back from the dead letters."""
        self._count(job, 1)

    def end(self, job: NewJob, state: JobState, now_ms: int) -> None:
        self._count(job, -1)
        self.totals[state.value] += 1
        kept = 0.0
        if self._last_ms is None or now_ms - self._last_ms > RATE_PAUSE_MS:
            self._began_ms = now_ms
        if self._last_ms is not None:
            kept = math.exp((self._last_ms - now_ms) / RATE_MS)
        jobs, rows, size = self._ended
        self._ended = jobs * kept + 1, rows * kept + job.rows, size * kept + len(job.payload)
        self._last_ms = now_ms

    def rows_per_s(self, now_ms: int) -> float | None:
        if self._last_ms is None:
            return None
        return rows_per_s(self._ended[1], self._began_ms, self._last_ms, now_ms)

    def full(self, job: NewJob, limits: QueueSettings) -> tuple[str, int, float] | None:
        """The bound that this job would break, by how much, and what of that kind has ended lately."""
        size = len(job.payload)
        mine_jobs, mine_bytes = self._tenants.get(job.tenant, (0, 0))
        tenant_jobs, tenant_bytes = limits.tenant_bounds(job.tenant)
        for what, held, limit, ended in (
            ("jobs", self.jobs + 1, limits.max_jobs, self._ended[0]),
            ("bytes", self.bytes + size, limits.max_bytes, self._ended[2]),
            ("tenant jobs", mine_jobs + 1, tenant_jobs, self._ended[0]),
            ("tenant bytes", mine_bytes + size, tenant_bytes, self._ended[2]),
        ):
            if limit is not None and held > limit:
                return what, held - limit, ended
        return None

    def room_ms(self, over: int, ended: float, earliest_ms: int | None, now_ms: int) -> int:
        """When there is predicted to be room: by the recent rate; without one, at the earliest deadline."""
        last_ms = self._last_ms
        rate = 0.0 if last_ms is None else per_ms(ended, self._began_ms, last_ms, now_ms)
        if rate > 0:
            return min(MAX_ROOM_MS, max(MIN_ROOM_MS, math.ceil(over / rate)))
        if earliest_ms is None:
            return UNKNOWN_ROOM_MS
        return min(MAX_ROOM_MS, max(UNKNOWN_ROOM_MS, earliest_ms - now_ms))

    def _count(self, job: NewJob, sign: int) -> None:
        size = sign * len(job.payload)
        self.jobs += sign
        self.rows += sign * job.rows
        self.bytes += size
        jobs, held = self._tenants.get(job.tenant, (0, 0))
        if jobs + sign > 0:
            self._tenants[job.tenant] = jobs + sign, held + size
        else:
            del self._tenants[job.tenant]
