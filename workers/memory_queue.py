"""The deadline queue in one process's memory: for tests, the simulator and trying things out.

It keeps the same contract as :class:`workers.redis_queue.RedisQueue` and is held to it by the same
tests. It survives nothing: what must not be lost belongs in the other one.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
import uuid
from collections.abc import Callable, Iterable, Sequence

from workers.fair_lines import FairLines
from workers.job import TERMINAL, Failure, Held, JobState, JobStatus, Lease, NewJob
from workers.memory_record import Record, applied_before, kind_of, lease_of, status_of, timed
from workers.queue import (
    Accepted,
    DeadLetter,
    Done,
    Failed,
    Full,
    KeyConflict,
    Missed,
    Outcome,
    QueueClosed,
    QueueSettings,
    QueueStats,
    Submitted,
    Waiting,
)
from workers.retry import Decision, Expire, GiveUp, Retry, after_failure, after_lost_lease

_TOTALS = ("submitted", "done", "failed", "expired", "cancelled", "dead", "retried", "lost")
_KEPT_FAILURES = 10


class MemoryQueue:
    """A :class:`workers.queue.DeadlineQueue`. ``now_ms`` is its clock, epoch milliseconds."""

    def __init__(
        self,
        model: str,
        settings: QueueSettings | None = None,
        *,
        now_ms: Callable[[], int] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._model = model
        self.settings = settings or QueueSettings()
        self._now = now_ms or (lambda: int(time.time() * 1000))
        self._rng = rng or random.Random()
        self._records: dict[str, Record] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self._lines = FairLines()
        self._sequence = 0
        self._totals = dict.fromkeys(_TOTALS, 0)
        self._ended_rows: list[tuple[int, int]] = []
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._idle: set[asyncio.Event] = set()
        self._closed = False

    @property
    def model(self) -> str:
        return self._model

    async def submit(self, jobs: Sequence[NewJob], *, within_ms: int | None = None) -> list[Submitted]:
        now = self._tick()
        return [self._submit(job, now) for job in jobs]

    async def claim(self, n: int, lease_ms: int, worker: str, *, max_rows: int | None = None) -> list[Lease]:
        now = self._tick()
        self._sweep(now)
        for _ in range(8):  # as the claim script does: expired tenants make room for others
            if not sum(self._expire_waiting(t, now) for t in self._lines.next_tenants(n)):
                break
        taken = self._lines.take(n, max_rows, self._records, self.settings)
        return self._lease(taken, now, lease_ms, worker)

    async def promote(self, ids: Sequence[str], lease_ms: int, worker: str) -> list[Lease]:
        now = self._tick()
        waiting = [
            r
            for r in self._known(dict.fromkeys(ids))
            if r.state is JobState.PENDING and r.not_before_ms is None and r.deadline_ms > now
        ]
        return self._lease(waiting, now, lease_ms, worker)

    async def extend(self, held: Sequence[Held], lease_ms: int) -> list[bool]:
        now = self._tick()
        answers = []
        for id, token in held:
            record = self._records.get(id)
            mine = record is not None and record.state is JobState.LEASED and record.token == token
            if record is not None and mine:
                record.lease_until_ms = now + lease_ms
            answers.append(mine)
        return answers

    async def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        now = self._tick()  # one draw each, needed or not, so that both forms draw alike for one seed
        return [self._settle(outcome, now, self._rng.random()) for outcome in outcomes]

    async def cancel(self, id: str) -> JobState | None:
        now = self._tick()
        record = self._records.get(id)
        if record is None:
            return None
        if record.state not in TERMINAL:
            self._finish(record, JobState.CANCELLED, now, "cancelled")
        return record.state

    async def state(self, id: str) -> JobStatus | None:
        self._tick()
        record = self._records.get(id)
        return None if record is None else status_of(record)

    async def wait(self, ids: Sequence[str], timeout_s: float) -> list[JobStatus]:
        event = asyncio.Event()
        until = time.monotonic() + timeout_s
        for id in ids:
            self._watchers.setdefault(id, set()).add(event)
        try:
            while True:
                self._tick()
                event.clear()
                known = list(self._known(ids))
                ended = [status_of(r) for r in known if r.state in TERMINAL]
                if ended or not known or not await _within(event, until - time.monotonic()):
                    return ended
        finally:
            for id in ids:
                self._watchers.get(id, set()).discard(event)
                if not self._watchers.get(id, True):
                    del self._watchers[id]

    async def peek(self, n: int) -> list[Waiting]:
        now = self._tick()
        places = sorted(p for line in self._lines.by_tenant.values() for p in line if p[0] > now)[:n]
        records = [self._records[id] for _, _, id in places]
        return [Waiting(r.job.id, r.deadline_ms, r.job.rows, r.job.tenant, r.job.variant) for r in records]

    async def stats(self) -> QueueStats:
        now = self._tick()
        live = [r for r in self._records.values() if r.state not in TERMINAL]
        leased = sum(r.state is JobState.LEASED for r in live)
        delayed = sum(r.not_before_ms is not None for r in live)
        recent = [(at, rows) for at, rows in self._ended_rows if now - at < 10_000]
        span_s = max(1.0, (now - recent[0][0]) / 1000) if recent else 1.0
        return QueueStats(
            now_ms=now,
            jobs=len(live),
            rows=sum(r.job.rows for r in live),
            bytes=sum(len(r.job.payload) for r in live),
            waiting_jobs=len(live) - leased - delayed,
            waiting_rows=sum(r.job.rows for r in live if r.state is JobState.PENDING),
            delayed_jobs=delayed,
            leased_jobs=leased,
            dead_letters=len(self._dead()),
            earliest_deadline_ms=min((line[0][0] for line in self._lines.by_tenant.values()), default=None),
            rows_per_s=sum(rows for _, rows in recent) / span_s if recent else None,
            totals=dict(self._totals),
        )

    async def wait_for_work(self, timeout_s: float) -> bool:
        event = asyncio.Event()
        until = time.monotonic() + timeout_s
        self._idle.add(event)
        try:
            while True:
                now = self._tick()
                due = [r.not_before_ms or r.lease_until_ms for r in self._records.values() if timed(r)]
                if self._lines.by_tenant or (due and min(due) <= now):
                    return True
                left_s = until - time.monotonic()
                pause_s = min([left_s] + [(at - now) / 1000 for at in due])
                if not await _within(event, pause_s) and time.monotonic() >= until:
                    return False
        finally:
            self._idle.discard(event)

    async def reap(self) -> int:
        now = self._tick()
        moved = self._sweep(now) + sum(self._expire_waiting(t, now) for t in list(self._lines.by_tenant))
        dead = self._dead()
        for record in dead[self.settings.max_dead_letters :]:
            self._forget(record)
        return moved

    async def dead_letters(self, limit: int = 100, offset: int = 0) -> list[JobStatus]:
        self._tick()
        return [status_of(r) for r in self._dead()[offset : offset + limit]]

    async def show_dead(self, id: str) -> DeadLetter | None:
        self._tick()
        record = self._records.get(id)
        if record is None or record.state is not JobState.DEAD:
            return None
        return DeadLetter(status_of(record), record.job.payload, record.job.max_attempts)

    async def retry_dead(self, ids: Sequence[str], budget_ms: int) -> list[str]:
        now = self._tick()
        moved = [r for r in self._known(dict.fromkeys(ids)) if r.state is JobState.DEAD]
        for record in moved:
            record.state, record.finished_ms, record.error = JobState.PENDING, None, None
            record.attempts = record.lost = 0
            record.given_back = record.ended_token = record.claimed_ms = None
            record.submitted_ms, record.deadline_ms = now, now + budget_ms
            self._enqueue(record)
        return [r.job.id for r in moved]

    async def drop_dead(self, ids: Sequence[str]) -> list[str]:
        self._tick()
        dropped = [r for r in self._known(dict.fromkeys(ids)) if r.state is JobState.DEAD]
        for record in dropped:
            self._forget(record)
        return [r.job.id for r in dropped]

    async def close(self) -> None:
        self._closed = True
        for event in (*self._idle, *(e for events in self._watchers.values() for e in events)):
            event.set()

    def _tick(self) -> int:
        """The time, after what is too old has been forgotten."""
        if self._closed:
            raise QueueClosed(f"the queue of model {self._model!r} was closed in this process")
        now = self._now()
        for record in list(self._records.values()):
            if record.finished_ms is not None:
                dead = record.state is JobState.DEAD
                keep_ms = self.settings.keep_dead_ms if dead else self.settings.keep_ms
                if record.finished_ms + keep_ms <= now:
                    self._forget(record)
        return now

    def _known(self, ids: Iterable[str]) -> list[Record]:
        return [self._records[id] for id in ids if id in self._records]

    def _submit(self, job: NewJob, now: int) -> Submitted:
        digest = job.digest()
        scoped = None if not job.key else (job.tenant, job.key)
        first = self._records.get(self._keys.get(scoped, job.id) if scoped else job.id)
        if first is not None:
            if first.digest != digest:
                return KeyConflict(job.id, first.job.id)
            return Accepted(first.job.id, first.deadline_ms, duplicate=True)
        what = self._full(job)
        if what:
            return Full(job.id, what, 1000)
        self._sequence += 1
        record = Record(job, digest, self._sequence, now, now + job.budget_ms)
        self._records[job.id] = record
        if scoped:
            self._keys[scoped] = job.id
        self._totals["submitted"] += 1
        self._enqueue(record)
        return Accepted(job.id, record.deadline_ms)

    def _full(self, job: NewJob) -> str | None:
        limits = self.settings
        live = [r.job for r in self._records.values() if r.state not in TERMINAL]
        mine = [other for other in live if other.tenant == job.tenant]
        size = len(job.payload)
        if len(live) + 1 > limits.max_jobs:
            return "jobs"
        if sum(len(other.payload) for other in live) + size > limits.max_bytes:
            return "bytes"
        if limits.tenant_jobs is not None and len(mine) + 1 > limits.tenant_jobs:
            return "tenant jobs"
        held = sum(len(other.payload) for other in mine)
        return (
            "tenant bytes" if limits.tenant_bytes is not None and held + size > limits.tenant_bytes else None
        )

    def _enqueue(self, record: Record) -> None:
        self._lines.add(record)
        for event in self._idle:
            event.set()

    def _leave_line(self, record: Record) -> None:
        if record.state is JobState.PENDING and record.not_before_ms is None:
            self._lines.remove(record)

    def _lease(self, taken: list[Record], now: int, lease_ms: int, worker: str) -> list[Lease]:
        token = uuid.uuid4().hex
        for record in taken:
            self._leave_line(record)
            record.state, record.token, record.worker = JobState.LEASED, token, worker
            record.claimed_ms, record.lease_until_ms = now, now + lease_ms
        return [lease_of(r, token) for r in taken]

    def _settle(self, outcome: Outcome, now: int, draw: float) -> bool:
        record = self._records.get(outcome.id)
        if record is None or record.state is not JobState.LEASED or record.token != outcome.token:
            return record is not None and applied_before(record, outcome)
        match outcome:
            case Done():
                record.result, record.ran_variant = outcome.result, outcome.variant
                self._finish(record, JobState.DONE, now, None)
            case Missed():
                self._finish(record, JobState.EXPIRED, now, outcome.error)
            case Failed():
                self._fail(record, outcome, now, draw)
            case _:
                self._carry_out(record, Retry(now), now, "")
        # Remembered, so that the same outcome again is answered alike, and another is stale.
        if record.state in TERMINAL:
            record.ended_token = outcome.token
        else:
            record.given_back = outcome.token, kind_of(outcome)
        return True

    def _fail(self, record: Record, outcome: Failed, now: int, draw: float) -> None:
        if not outcome.retry:
            self._note_failure(record, now, outcome.error)
            self._finish(record, JobState.FAILED, now, outcome.error)
            return
        record.attempts += 1
        self._note_failure(record, now, outcome.error)
        decision = after_failure(
            self.settings.retry,
            record.attempts,
            record.job.max_attempts,
            record.deadline_ms,
            now,
            draw,
        )
        self._totals["retried"] += isinstance(decision, Retry)
        self._carry_out(record, decision, now, outcome.error)

    def _carry_out(self, record: Record, decision: Decision, now: int, error: str) -> None:
        match decision:
            case Expire():
                self._finish(record, JobState.EXPIRED, now, error)
            case GiveUp(reason):
                self._finish(record, JobState.DEAD, now, f"{reason}; last: {error}" if error else reason)
            case Retry(not_before_ms):
                record.state, record.token = JobState.PENDING, None
                if not_before_ms > now:
                    record.not_before_ms = not_before_ms
                else:
                    self._enqueue(record)

    def _note_failure(self, record: Record, now: int, error: str) -> None:
        record.failures = [*record.failures, Failure(now, record.worker or "", error)][-_KEPT_FAILURES:]
        record.error = error

    def _finish(self, record: Record, state: JobState, now: int, error: str | None) -> None:
        self._leave_line(record)
        record.state, record.finished_ms, record.error = state, now, error
        record.token = record.not_before_ms = None
        self._totals[state.value] += 1
        self._ended_rows = [*self._ended_rows, (now, record.job.rows)][-1000:]
        for event in self._watchers.get(record.job.id, ()):
            event.set()

    def _sweep(self, now: int) -> int:
        due = [r for r in self._records.values() if timed(r) and (r.not_before_ms or r.lease_until_ms) <= now]
        for record in due:
            if record.not_before_ms is not None:
                record.not_before_ms = None
                self._enqueue(record)
                continue
            record.lost += 1
            self._totals["lost"] += 1
            limit = self.settings.max_lost_leases
            decision = after_lost_lease(record.lost, limit, record.deadline_ms, now)
            if isinstance(decision, GiveUp):
                self._note_failure(record, now, decision.reason)
            reason = "the deadline passed while its worker was gone" if isinstance(decision, Expire) else ""
            self._carry_out(record, decision, now, reason)
        return len(due)

    def _expire_waiting(self, tenant: str, now: int) -> int:
        late = [place for place in self._lines.by_tenant.get(tenant, ()) if place[0] <= now]
        for _, _, id in late:
            self._finish(self._records[id], JobState.EXPIRED, now, "the deadline passed before it could run")
        return len(late)

    def _dead(self) -> list[Record]:
        dead = [r for r in self._records.values() if r.state is JobState.DEAD]
        return sorted(dead, key=lambda r: (r.finished_ms or 0, r.job.id), reverse=True)

    def _forget(self, record: Record) -> None:
        del self._records[record.job.id]
        if record.job.key:
            self._keys.pop((record.job.tenant, record.job.key), None)


async def _within(event: asyncio.Event, seconds: float) -> bool:
    if seconds <= 0 or math.isnan(seconds):
        return False
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
