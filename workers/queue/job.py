"""A job as the queue keeps it: what is submitted, its states, what a worker holds, what a caller sees.

The lifecycle, drawn once; the names in capitals are terminal and the first one reached wins for ever::

    submit --> pending --claim--> leased --settle--> DONE | FAILED
                 ^  |  \\                |  \\
                 |  |   cancel          |   cancel ---> CANCELLED
                 |  |    `--> CANCELLED |
                 |  deadline passed     +-- failure with no attempt left, or lease lost too often --> DEAD
                 |   `--> EXPIRED       +-- lease lost after the deadline --> EXPIRED
                 |                      |
                 `----------------------+  release, lease lost, or a failure that may be tried again
                                           (after its backoff, which is kept apart from the deadline)

    DEAD --retry of the dead letter--> pending

Every time is the queue's own clock in epoch milliseconds (Redis ``TIME``); no two machines' clocks are
ever compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import orjson

MAX_ID_CHARS = 192
MAX_NAME_CHARS = 256
MAX_ATTEMPTS = 100
DEFAULT_ATTEMPTS = 3


class JobError(Exception):
    """Root of what this module raises."""


class InvalidJob(JobError, ValueError):
    """A job that cannot be queued as it is. The message names the field and what it must be."""


class JobDecodeError(JobError, ValueError):
    """What the queue's server holds under a job's name is not a job this version can read."""


class JobState(StrEnum):
    PENDING = "pending"
    LEASED = "leased"
    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    DEAD = "dead"

    @property
    def terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({JobState.DONE, JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED, JobState.DEAD})


@dataclass(frozen=True, slots=True)
class NewJob:
    """Work to be queued.

    ``payload`` is an :func:`optimizers.tensors.pack` message of ``rows`` rows, opaque to the queue.
    ``budget_ms`` becomes a deadline once, by the queue's clock, when the job is accepted. ``variant``
    pins one; ``None`` leaves it to the worker. ``key`` is the caller's idempotency key, whose scope
    is the tenant. ``max_attempts`` counts failures, not leases lost with a worker that died. ``trace`` is the
    caller's trace context, kept with the job for tracing.
    """

    id: str
    payload: bytes = field(repr=False)
    rows: int
    budget_ms: int
    tenant: str = ""
    variant: str | None = None
    key: str | None = None
    max_attempts: int = DEFAULT_ATTEMPTS
    trace: str | None = None

    def __post_init__(self) -> None:
        if not self.id or len(self.id) > MAX_ID_CHARS or any(c.isspace() for c in self.id):
            raise InvalidJob(f"job id {self.id!r}: must be 1 to {MAX_ID_CHARS} characters without blanks")
        if type(self.rows) is not int or self.rows < 1:
            raise InvalidJob(f"job {self.id}: rows is {self.rows!r}, must be a whole number of 1 or more")
        if type(self.budget_ms) is not int or not 1 <= self.budget_ms <= 1 << 42:
            raise InvalidJob(
                f"job {self.id}: budget_ms is {self.budget_ms!r}, must be 1 or more milliseconds"
            )
        if type(self.max_attempts) is not int or not 1 <= self.max_attempts <= MAX_ATTEMPTS:
            raise InvalidJob(
                f"job {self.id}: max_attempts is {self.max_attempts!r}, must be 1 to {MAX_ATTEMPTS}"
            )
        for name in ("tenant", "variant", "key", "trace"):
            value = getattr(self, name)
            if value is not None and len(value) > MAX_NAME_CHARS:
                raise InvalidJob(
                    f"job {self.id}: {name} has {len(value)} characters, at most {MAX_NAME_CHARS}"
                )

    def digest(self) -> str:
        """What "the same content" means for idempotency: payload, rows and variant; 32 hex digits."""
        hasher = hashlib.blake2b(self.payload, digest_size=16)
        hasher.update(b"\0%d\0%s" % (self.rows, (self.variant or "").encode()))
        return hasher.hexdigest()


class LeaseRef(NamedTuple):
    """What proves that a job is leased to the holder: its id and the claim's fencing token."""

    id: str
    token: str


@dataclass(frozen=True, slots=True)
class Lease:
    """A job handed out by a claim. Only its ``token`` can settle, extend or release it.

    ``attempts`` counts failures so far (0 on the first run); ``lost`` the leases that ran out because
    their worker died or stalled.
    """

    id: str
    token: str
    payload: bytes = field(repr=False)
    rows: int
    deadline_ms: int
    attempts: int
    tenant: str
    variant: str | None
    lease_until_ms: int
    submitted_ms: int
    lost: int = 0

    @property
    def ref(self) -> LeaseRef:
        return LeaseRef(self.id, self.token)


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed run of a job: when, by whom, and why."""

    at_ms: int
    worker: str
    error: str


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What a caller sees of a job.

    ``queued_ms`` is how long it waited before it was (last) claimed; ``None`` if it never was.
    ``met`` is ``None`` until the job has ended, then whether it was done by its deadline. ``variant``
    is the one that ran it once it is done, before that the one it pins. ``result`` is an
    :func:`optimizers.tensors.pack` message. ``failures`` is the history behind ``error``.
    """

    id: str
    state: JobState
    deadline_ms: int
    submitted_ms: int
    rows: int
    attempts: int = 0
    lost: int = 0
    tenant: str = ""
    variant: str | None = None
    worker: str | None = None
    queued_ms: int | None = None
    finished_ms: int | None = None
    error: str | None = None
    failures: tuple[Failure, ...] = ()
    result: bytes | None = field(default=None, repr=False)
    trace: str | None = None

    @property
    def met(self) -> bool | None:
        if self.finished_ms is None:
            return None
        return self.state is JobState.DONE and self.finished_ms <= self.deadline_ms


def encode_new(jobs: list[NewJob]) -> bytes:
    """The jobs' metadata for the submit script, a JSON array of arrays; payloads travel beside it."""
    return orjson.dumps(
        [
            [
                j.id,
                j.rows,
                j.budget_ms,
                j.tenant,
                j.variant or "",
                j.key or "",
                j.max_attempts,
                j.digest(),
                j.trace or "",
            ]
            for j in jobs
        ]
    )


def decode_leases(rows: bytes, payloads: list[bytes]) -> list[Lease]:
    """Leases from a claim's answer: metadata as JSON, then one payload each, in the same order."""
    try:
        return [
            Lease(id, token, payload, n, deadline, attempts, tenant, variant or None, until, submitted, lost)
            for (id, token, n, deadline, attempts, tenant, variant, until, submitted, lost), payload in zip(
                orjson.loads(rows), payloads, strict=True
            )
        ]
    except (orjson.JSONDecodeError, TypeError, ValueError) as error:
        raise JobDecodeError(f"a claim's answer cannot be read: {error}") from None


def decode_status(id: str, fields: Mapping[str, Any], result: bytes | None = None) -> JobStatus:
    """A status from the fields the server keeps for a job (names: see ``workers/queue/redis/keys.py``)."""
    try:
        claimed = fields.get("claimed_ms")
        submitted = int(fields["submitted_ms"])
        failures = tuple(
            Failure(int(f["at_ms"]), str(f["worker"]), str(f["error"]))
            for f in orjson.loads(fields.get("failures") or "[]")
        )
        return JobStatus(
            id=id,
            state=JobState(fields["state"]),
            deadline_ms=int(fields["deadline_ms"]),
            submitted_ms=submitted,
            rows=int(fields["rows"]),
            attempts=int(fields.get("attempts") or 0),
            lost=int(fields.get("lost") or 0),
            tenant=str(fields.get("tenant") or ""),
            variant=fields.get("ran_variant") or fields.get("variant") or None,
            worker=fields.get("worker") or None,
            queued_ms=None if not claimed else int(claimed) - submitted,
            finished_ms=int(fields["finished_ms"]) if fields.get("finished_ms") else None,
            error=fields.get("error") or None,
            failures=failures,
            result=result,
            trace=fields.get("trace") or None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise JobDecodeError(
            f"job {id}: its record cannot be read ({type(error).__name__}: {error})"
        ) from None
