"""One job as the in-memory queue keeps it, and what follows from its record alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from workers.queue.contract import Done, Failed, Lost, Missed, Outcome
from workers.queue.job import Failure, JobState, JobStatus, Lease, NewJob

#: A place in a tenant's queue: deadline in ms, sequence, a unique number, and the job.
Entry = tuple[int, int, int, "JobRecord"]


@dataclass(slots=True, eq=False)
class JobRecord:
    job: NewJob
    digest: str
    sequence: int
    submitted_ms: int
    deadline_ms: int
    state: JobState = JobState.PENDING
    attempts: int = 0
    lost: int = 0
    #: Whether a worker gave up on it, because its model hung or broke.
    given_up: bool = False
    not_before_ms: int | None = None
    token: str | None = None
    given_back: tuple[str, str] | None = None
    ended_token: str | None = None
    lease_until_ms: int = 0
    claimed_ms: int | None = None
    worker: str | None = None
    finished_ms: int | None = None
    error: str | None = None
    failures: Sequence[Failure] = ()
    ran_variant: str | None = None
    result: bytes | None = None
    entry: Entry | None = field(default=None, repr=False)


_MAY_END = {
    "done": {JobState.DONE},
    "failed": {JobState.FAILED},
    "missed": {JobState.EXPIRED},
    "retry": {JobState.EXPIRED, JobState.DEAD},
    "lost": {JobState.EXPIRED, JobState.DEAD},
    "release": set[JobState](),
}


def kind_of(outcome: Outcome) -> str:
    match outcome:
        case Done():
            return "done"
        case Failed(retry=True):
            return "retry"
        case Failed():
            return "failed"
        case Missed():
            return "missed"
        case Lost():
            return "lost"
    return "release"


def applied_before(record: JobRecord, outcome: Outcome) -> bool:
    kind = kind_of(outcome)
    if record.ended_token == outcome.token:
        return record.state in _MAY_END[kind]
    return record.given_back == (outcome.token, kind)


def status_of(r: JobRecord) -> JobStatus:
    return JobStatus(
        id=r.job.id,
        state=r.state,
        deadline_ms=r.deadline_ms,
        submitted_ms=r.submitted_ms,
        rows=r.job.rows,
        attempts=r.attempts,
        lost=r.lost,
        tenant=r.job.tenant,
        variant=r.ran_variant or r.job.variant,
        worker=r.worker,
        queued_ms=None if r.claimed_ms is None else r.claimed_ms - r.submitted_ms,
        finished_ms=r.finished_ms,
        error=r.error,
        failures=tuple(r.failures),
        result=r.result,
        trace=r.job.trace,
    )


def lease_of(r: JobRecord, token: str) -> Lease:
    return Lease(
        r.job.id,
        token,
        r.job.payload,
        r.job.rows,
        r.deadline_ms,
        r.attempts,
        r.job.tenant,
        r.job.variant,
        r.lease_until_ms,
        r.submitted_ms,
        r.lost,
    )
