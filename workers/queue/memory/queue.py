"""The deadline queue in one process's memory: for tests, the simulator and trying things out.

It keeps the same contract as :class:`workers.queue.redis.queue.RedisQueue` and is held to it by the same
tests. It survives nothing: what must not be lost belongs in the other one. A verb costs O(log n) for each
job that it touches and for each tenant that waits, whatever else the queue holds.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from workers.queue.contract import (
    Accepted,
    DeadLetter,
    Done,
    Failed,
    Full,
    KeyConflict,
    Lost,
    Missed,
    Outcome,
    QueueClosed,
    QueueStats,
    Release,
    Submitted,
    WaitingJob,
)
from workers.queue.job import TERMINAL, Failure, JobState, JobStatus, Lease, LeaseRef, NewJob
from workers.queue.limits import CLAIM_ROUNDS, KEPT_FAILURES, MAX_ERROR_CHARS, MAX_EXPIRED_PER_CLAIM
from workers.queue.memory.counts import QueueCounts
from workers.queue.memory.ended import EndedJobs
from workers.queue.memory.places import Places
from workers.queue.memory.record import JobRecord, applied_before, kind_of, lease_of, status_of
from workers.queue.retry import Decision, Expire, GiveUp, Retry, after_failure, after_lost_lease
from workers.queue.settings import QueueSettings
from workers.queue.waiters import Waiters


class MemoryQueue:
    """A :class:`workers.queue.contract.DeadlineQueue`. ``now_ms`` is its clock, epoch milliseconds."""

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
        self._records: dict[str, JobRecord] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self._places = Places()
        self._ended = EndedJobs(self.settings)
        self._counts = QueueCounts()
        self._sequence = 0
        self._waiters = Waiters()
        self._closed = False

    @property
    def model(self) -> str:
        return self._model

    def configure(self, settings: QueueSettings) -> None:
        self.settings = self._ended.settings = settings

    async def submit(self, jobs: Sequence[NewJob], *, within_ms: int | None = None) -> list[Submitted]:
        now = self._tick()
        first_ms = self._first_deadline_ms()
        return [self._submit(job, now, first_ms) for job in jobs]

    async def claim(self, n: int, lease_ms: int, worker: str, *, max_rows: int | None = None) -> list[Lease]:
        now = self._tick()
        self._sweep(now)
        may_expire = MAX_EXPIRED_PER_CLAIM
        for _ in range(CLAIM_ROUNDS):  # as the claim script does: expired tenants make room for others
            before = may_expire
            for tenant in self._places.waiting.next_tenants(n):
                may_expire -= self._expire_waiting(tenant, now, may_expire)
            if may_expire == before:
                break
        taken = self._places.waiting.take(n, max_rows, self.settings, now)
        return self._lease(taken, now, lease_ms, worker)

    async def promote(self, ids: Sequence[str], lease_ms: int, worker: str) -> list[Lease]:
        now = self._tick()
        waiting = [
            r
            for r in self._known(dict.fromkeys(ids))
            if r.state is JobState.PENDING and r.not_before_ms is None and r.deadline_ms > now
        ]
        return self._lease(waiting, now, lease_ms, worker)

    async def extend(self, held: Sequence[LeaseRef], lease_ms: int) -> list[bool]:
        now = self._tick()
        answers = []
        for id, token in held:
            record = self._records.get(id)
            is_held = record is not None and record.state is JobState.LEASED and record.token == token
            if record is not None and is_held:
                self._places.renew(record, now + lease_ms)
            answers.append(is_held)
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
        until = time.monotonic() + timeout_s
        with self._waiters.ended(ids) as event:
            while True:
                self._tick()
                event.clear()
                known = list(self._known(ids))
                ended = [status_of(r) for r in known if r.state in TERMINAL]
                if ended or not known or not await _within(event, until - time.monotonic()):
                    return ended

    async def peek(self, n: int) -> list[WaitingJob]:
        now = self._tick()
        first = islice(self._places.waiting.in_time(now), max(0, n))
        return [WaitingJob(r.job.id, r.deadline_ms, r.job.rows, r.job.tenant, r.job.variant) for r in first]

    async def stats(self) -> QueueStats:
        now = self._tick()
        counts, places = self._counts, self._places
        return QueueStats(
            now_ms=now,
            jobs=counts.jobs,
            rows=counts.rows,
            bytes=counts.bytes,
            waiting_jobs=counts.jobs - places.leased - places.delayed,
            waiting_rows=places.waiting_rows,
            delayed_jobs=places.delayed,
            leased_jobs=places.leased,
            dead_letters=self._ended.dead_letters,
            earliest_deadline_ms=places.waiting.earliest_deadline_ms(),
            rows_per_s=counts.rows_per_s(now),
            totals=dict(counts.totals),
        )

    async def wait_for_work(self, timeout_s: float) -> bool:
        until = time.monotonic() + timeout_s
        with self._waiters.work() as event:
            while True:
                # What woke this one may have been taken by another since.
                event.clear()
                now, due_ms = self._tick(), self._places.next_time_ms()
                if self._places.waiting or (due_ms is not None and due_ms <= now):
                    return True
                pause_s = until - time.monotonic()
                if due_ms is not None:
                    pause_s = min(pause_s, (due_ms - now) / 1000)
                if not await _within(event, pause_s) and time.monotonic() >= until:
                    return False

    async def reap(self) -> int:
        now = self._tick()
        moved = self._sweep(now) + sum(self._expire_waiting(t, now) for t in self._places.waiting.tenants())
        for id in self._ended.take_excess():
            self._forget(id)
        return moved

    async def dead_letters(self, limit: int = 100) -> list[JobStatus]:
        self._tick()
        return [status_of(self._records[id]) for id in self._ended.newest_dead(limit)]

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
            self._ended.revive(record)
            record.finished_ms = record.error = None
            record.attempts = record.lost = 0
            record.given_up = False
            record.given_back = record.ended_token = record.claimed_ms = None
            record.submitted_ms, record.deadline_ms = now, now + budget_ms
            self._counts.enter(record.job)
            self._enqueue(record)
        return [r.job.id for r in moved]

    async def drop_dead(self, ids: Sequence[str]) -> list[str]:
        self._tick()
        dropped = [r for r in self._known(dict.fromkeys(ids)) if r.state is JobState.DEAD]
        for record in dropped:
            self._ended.revive(record)
            self._forget(record.job.id)
        return [r.job.id for r in dropped]

    async def close(self) -> None:
        self._closed = True
        self._waiters.wake_all()

    def _tick(self) -> int:
        """The time, after what is too old has been forgotten."""
        if self._closed:
            raise QueueClosed(f"the queue of model {self._model!r} was closed in this process")
        now = self._now()
        for id in self._ended.take_old(now):
            self._forget(id)
        return now

    def _known(self, ids: Iterable[str]) -> list[JobRecord]:
        return [self._records[id] for id in ids if id in self._records]

    def _submit(self, job: NewJob, now: int, first_ms: int | None) -> Submitted:
        digest = job.digest()
        scoped = None if not job.key else (job.tenant, job.key)
        first = self._records.get(self._keys.get(scoped, job.id) if scoped else job.id)
        if first is not None:
            if first.digest != digest:
                return KeyConflict(job.id, first.job.id)
            return Accepted(first.job.id, first.deadline_ms, duplicate=True)
        full = self._counts.full(job, self.settings)
        if full:
            what, over, ended = full
            return Full(job.id, what, self._counts.room_ms(over, ended, first_ms, now))
        self._sequence += 1
        record = JobRecord(job, digest, self._sequence, now, now + job.budget_ms)
        self._records[job.id] = record
        if scoped:
            self._keys[scoped] = job.id
        self._counts.totals["submitted"] += 1
        self._counts.enter(job)
        self._enqueue(record)
        return Accepted(job.id, record.deadline_ms)

    def _first_deadline_ms(self) -> int | None:
        """Of the tenant that is next, before anything is added: what the submit script looks at too."""
        waiting = self._places.waiting
        return next((waiting.earliest_deadline_ms(t) for t in waiting.next_tenants(1)), None)

    def _enqueue(self, record: JobRecord) -> None:
        self._places.wait(record)
        self._waiters.wake_for_work()

    def _lease(self, taken: list[JobRecord], now: int, lease_ms: int, worker: str) -> list[Lease]:
        token = uuid.uuid4().hex
        for record in taken:
            self._places.leave(record)
            self._places.lease(record, token, now + lease_ms)
            record.worker, record.claimed_ms = worker, now
        return [lease_of(r, token) for r in taken]

    def _settle(self, outcome: Outcome, now: int, draw: float) -> bool:
        record = self._records.get(outcome.id)
        if record is None or record.state is not JobState.LEASED or record.token != outcome.token:
            return record is not None and applied_before(record, outcome)
        error = "" if isinstance(outcome, Done | Release) else outcome.error[:MAX_ERROR_CHARS]
        match outcome:
            case Done():
                record.result, record.ran_variant = outcome.result, outcome.variant
                self._finish(record, JobState.DONE, now, None)
            case Missed():
                self._finish(record, JobState.EXPIRED, now, error)
            case Failed():
                self._fail(record, outcome.retry, now, draw, error)
            case Lost():
                self._lose(record, now, error)
            case _:
                self._carry_out(record, Retry(now), now, "")
        # Remembered, so that the same outcome again is answered alike, and another is stale.
        if record.state in TERMINAL:
            record.ended_token = outcome.token
        else:
            record.given_back = outcome.token, kind_of(outcome)
        return True

    def _fail(self, record: JobRecord, retry: bool, now: int, draw: float, error: str) -> None:
        record.attempts += retry
        self._note_failure(record, now, error)
        if not retry:
            self._finish(record, JobState.FAILED, now, error)
            return
        decision = after_failure(
            self.settings.retry,
            record.attempts,
            record.job.max_attempts,
            record.deadline_ms,
            now,
            draw,
        )
        self._counts.totals["retried"] += isinstance(decision, Retry)
        self._carry_out(record, decision, now, error)

    def _carry_out(self, record: JobRecord, decision: Decision, now: int, error: str) -> None:
        match decision:
            case Expire():
                self._finish(record, JobState.EXPIRED, now, error)
            case GiveUp(reason):
                self._finish(record, JobState.DEAD, now, f"{reason}; last: {error}" if error else reason)
            case Retry(not_before_ms):
                self._places.leave(record)
                if not_before_ms > now:
                    self._places.delay(record, not_before_ms)
                else:
                    self._enqueue(record)

    def _note_failure(self, record: JobRecord, now: int, error: str) -> None:
        record.failures = [*record.failures, Failure(now, record.worker or "", error)][-KEPT_FAILURES:]
        record.error = error

    def _finish(self, record: JobRecord, state: JobState, now: int, error: str | None) -> None:
        self._places.leave(record)
        record.state, record.finished_ms, record.error = state, now, error
        record.token = None
        self._counts.end(record.job, state, now)
        self._ended.add(record)
        self._waiters.wake_for_end(record.job.id)

    def _sweep(self, now: int) -> int:
        moved = 0
        while (record := self._places.take_due(now)) is not None:
            moved += 1
            if record.not_before_ms is not None:
                self._places.leave(record)
                self._enqueue(record)
                continue
            self._lose(record, now, "")
        return moved

    def _lose(self, record: JobRecord, now: int, why: str) -> None:
        record.lost += 1
        self._counts.totals["lost"] += 1
        decision = after_lost_lease(record.lost, self.settings.max_lost_leases, record.deadline_ms, now)
        if why:
            record.given_up = True
            self._note_failure(record, now, why)
        elif isinstance(decision, GiveUp):
            self._note_failure(record, now, decision.reason)
        elif isinstance(decision, Expire):
            why = "the deadline passed while its worker was gone"
        self._carry_out(record, decision, now, why)

    def _expire_waiting(self, tenant: str, now: int, limit: float = math.inf) -> int:
        late = self._places.waiting.take_late(tenant, now, limit)
        for record in late:
            self._finish(record, JobState.EXPIRED, now, "the deadline passed before it could run")
        return len(late)

    def _forget(self, id: str) -> None:
        job = self._records.pop(id).job
        if job.key:
            self._keys.pop((job.tenant, job.key), None)


async def _within(event: asyncio.Event, seconds: float) -> bool:
    if seconds <= 0 or math.isnan(seconds):
        return False
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
