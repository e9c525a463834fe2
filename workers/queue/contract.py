"""The deadline queue as its users see it: one queue per model, earliest deadline first, claimed by lease.

:class:`workers.queue.memory.queue.MemoryQueue` and :class:`workers.queue.redis.queue.RedisQueue` implement
:class:`DeadlineQueue`, and one test suite runs on both. Every verb may be applied twice without harm, because
a client that lost an answer asks again.

Errors raised by a queue::

    QueueError
    ├── QueueUnavailable     the server cannot be reached, or refuses, and the time to retry is spent
    ├── QueueIncompatible    the server is too old or a cluster, or the queue holds jobs of another model
    └── QueueClosed          the queue was closed here
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from workers.queue.job import DEFAULT_ATTEMPTS, JobState, JobStatus, Lease, LeaseRef, NewJob
from workers.queue.settings import QueueSettings

#: What `QueueStats.totals` counts.
TOTALS = ("submitted", "done", "failed", "expired", "cancelled", "dead", "retried", "lost", "orphaned")


class QueueError(Exception):
    """Root of what a queue raises."""


class QueueUnavailable(QueueError):
    """The queue's server cannot be reached or refuses to serve. Nothing is known to be accepted."""


class QueueIncompatible(QueueError):
    """The server cannot run this queue. The message says what it is and what is needed."""


class QueueClosed(QueueError):
    """A call on a queue that was closed in this process."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The job is in the queue. ``duplicate``: it was already, and ``id`` is the first one's."""

    id: str
    deadline_ms: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Full:
    """A bound is reached and nothing was queued. ``what`` names it: "jobs", "bytes", "tenant jobs"
    or "tenant bytes". ``retry_after_ms`` is when there is predicted to be room."""

    id: str
    what: str
    retry_after_ms: int


@dataclass(frozen=True, slots=True)
class KeyConflict:
    """The id or the idempotency key belongs to a job with other content: ``first_id``."""

    id: str
    first_id: str


Submitted = Accepted | Full | KeyConflict


@dataclass(frozen=True, slots=True)
class Done:
    """The job's result, an :func:`optimizers.tensors.pack` message, and the variant that made it."""

    id: str
    token: str
    result: bytes = field(repr=False)
    variant: str | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The run failed. ``retry=False`` (the rows themselves are at fault) ends the job as FAILED;
    ``retry=True`` tries again after a backoff, or ends it as DEAD when its attempts are spent."""

    id: str
    token: str
    error: str
    retry: bool = True


@dataclass(frozen=True, slots=True)
class Release:
    """Give the job back untouched: no attempt is counted, it may be claimed at once."""

    id: str
    token: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The worker could not finish and the job is not known to be at fault: counted like a lease that ran out,
    with the reason, and claimable at once; dead when it happens too often."""

    id: str
    token: str
    error: str


@dataclass(frozen=True, slots=True)
class Missed:
    """The deadline cannot be met any more and the job was not run: it ends as EXPIRED, at once."""

    id: str
    token: str
    error: str


Outcome = Done | Failed | Release | Lost | Missed


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A waiting job seen from outside, without its payload."""

    id: str
    deadline_ms: int
    rows: int
    tenant: str
    variant: str | None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job that was given up on, with all that is needed to understand and replay it."""

    status: JobStatus
    payload: bytes = field(repr=False)
    max_attempts: int = DEFAULT_ATTEMPTS


@dataclass(frozen=True, slots=True)
class QueueStats:
    """The queue at one moment, ``now_ms`` by its own clock.

    ``jobs``, ``rows``, ``bytes``: everything accepted and not ended, payload bytes. ``waiting_jobs``
    can be claimed now, ``delayed_jobs`` sit out a backoff, ``leased_jobs`` are with a worker; the three
    add up to ``jobs``. ``waiting_rows`` are the rows that no worker holds. ``rows_per_s`` is the recent
    rate at which rows ended, ``None`` if nothing ended lately. ``totals`` count since the queue began:
    submitted, done, failed, expired, cancelled, dead, retried, lost (leases that ran out), orphaned (jobs
    whose record or payload is gone from the server).
    """

    now_ms: int
    jobs: int
    rows: int
    bytes: int
    waiting_jobs: int
    waiting_rows: int
    delayed_jobs: int
    leased_jobs: int
    dead_letters: int
    earliest_deadline_ms: int | None
    rows_per_s: float | None
    totals: Mapping[str, int]


class DeadlineQueue(Protocol):
    """One model's queue. All times are the queue's own clock in epoch milliseconds."""

    @property
    def model(self) -> str: ...

    def configure(self, settings: QueueSettings) -> None:
        """Use other settings from the next verb on. Accepted jobs keep their places."""

    async def submit(self, jobs: Sequence[NewJob], *, within_ms: int | None = None) -> list[Submitted]:
        """Queue jobs; one answer each, in order. An answer of :class:`Accepted` means written.

        ``within_ms``: how long to keep trying while the server refuses or cannot be reached (default: the
        shortest budget among the jobs, at most 10 s). Then :class:`QueueUnavailable` is raised.
        """

    async def claim(self, n: int, lease_ms: int, worker: str, *, max_rows: int | None = None) -> list[Lease]:
        """Lease up to ``n`` waiting jobs. Together they have at most ``max_rows`` rows and
        `workers.queue.limits.MAX_BYTES_PER_CLAIM` bytes, but one job is always given.

        Tenants in turn by weight, within a tenant earliest deadline first, equal deadlines first come
        first served. Jobs whose deadline has passed are expired, never handed out.
        """

    async def promote(self, ids: Sequence[str], lease_ms: int, worker: str) -> list[Lease]:
        """Lease exactly these jobs, for the online path to run. Those not waiting are left out."""

    async def extend(self, held: Sequence[LeaseRef], lease_ms: int) -> list[bool]:
        """Renew leases to ``lease_ms`` from now. False: no longer the holder's; stop working on it."""

    async def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        """End or give back leased jobs, each by itself. False: the token is stale, nothing changed."""

    async def cancel(self, id: str) -> JobState | None:
        """Cancel a job that has not ended; returns the state it is in now. ``None``: no such job."""

    async def state(self, id: str) -> JobStatus | None:
        """A job's status, with its result when it is done. ``None``: unknown, or removed by age."""

    async def wait(self, ids: Sequence[str], timeout_s: float) -> list[JobStatus]:
        """Wait until at least one of the jobs has ended; the statuses of all that have, or ``[]`` at
        the timeout, or at once when all of them are unknown. Woken by notification."""

    async def peek(self, n: int) -> list[WaitingJob]:
        """The ``n`` claimable jobs of the earliest deadlines, of all tenants."""

    async def stats(self) -> QueueStats:
        """Counts, bytes, the earliest deadline and the recent rate."""

    async def wait_for_work(self, timeout_s: float) -> bool:
        """Sleep until there may be something to claim (True) or the timeout (False)."""

    async def reap(self) -> int:
        """Expire, return lost leases, make due retries claimable, drop what is too old.

        Cheap: every process that uses the queue calls it about twice a second. Returns how many jobs it
        moved.
        """

    async def dead_letters(self, limit: int = 100) -> list[JobStatus]:
        """Dead letters, newest first."""

    async def show_dead(self, id: str) -> DeadLetter | None:
        """One dead letter with its payload and failures."""

    async def retry_dead(self, ids: Sequence[str], budget_ms: int) -> list[str]:
        """Queue dead letters again under their ids, attempts at 0, with a new deadline; give those moved."""

    async def drop_dead(self, ids: Sequence[str]) -> list[str]:
        """Delete dead letters; give those deleted."""

    async def close(self) -> None:
        """Wake local waiters with :class:`QueueClosed` and close connections. Safe to call twice."""
