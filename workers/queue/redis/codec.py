"""What the queue's scripts take and give, as the values of :mod:`workers.queue.contract` and
:mod:`workers.queue.job`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import orjson

from workers.queue import limits
from workers.queue.contract import (
    Accepted,
    Done,
    Failed,
    Full,
    KeyConflict,
    Lost,
    Missed,
    Outcome,
    Submitted,
)
from workers.queue.job import JobDecodeError, JobStatus, NewJob, decode_status
from workers.queue.redis.keys import FIELDS, STATES
from workers.queue.settings import QueueSettings

#: One script call takes at most this much, so that no call keeps the server from others for long.
MAX_JOBS_PER_CALL = 256
MAX_BYTES_PER_CALL = 4 << 20
T = TypeVar("T")


def encode_settings(settings: QueueSettings, layout: str | None = None) -> bytes:
    return orjson.dumps(
        {
            "max_jobs": settings.max_jobs,
            "max_bytes": settings.max_bytes,
            # Absent rather than null: to a script JSON's null is not false.
            **({"tenant_jobs": settings.tenant_jobs} if settings.tenant_jobs is not None else {}),
            **({"tenant_bytes": settings.tenant_bytes} if settings.tenant_bytes is not None else {}),
            # [jobs, bytes], 0 where a tenant has no bound of its own.
            "bounds": {name: [jobs or 0, size or 0] for name, (jobs, size) in settings.bounds.items()},
            **({"layout": layout} if layout is not None else {}),
            "weights": dict(settings.weights),
            "keep": settings.keep_ms,
            "keep_dead": settings.keep_dead_ms,
            "max_dead": settings.max_dead_letters,
            "max_lost": settings.max_lost_leases,
            "max_expired": limits.MAX_EXPIRED_PER_CLAIM,
            "claim_bytes": limits.MAX_BYTES_PER_CLAIM,
            "suspect_after": settings.suspect_after,
            "retry_base": settings.retry.base_ms,
            "retry_cap": settings.retry.cap_ms,
        }
    )


def split(items: Sequence[T], size: Callable[[T], int] = lambda item: 0) -> list[list[T]]:
    """The items in order, in parts of which each fits one call."""
    parts: list[list[T]] = []
    count = total = 0
    for item in items:
        if not parts or count == MAX_JOBS_PER_CALL or total + size(item) > MAX_BYTES_PER_CALL:
            parts.append([])
            count = total = 0
        parts[-1].append(item)
        count += 1
        total += size(item)
    return parts


def job_parts(jobs: Sequence[NewJob]) -> list[list[NewJob]]:
    return split(jobs, lambda job: len(job.payload))


def outcome_parts(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    return split(outcomes, lambda o: len(o.result) if isinstance(o, Done) else 0)


def decode_submitted(job: NewJob, answer: list[Any]) -> Submitted:
    match answer[0]:
        case b"ok":
            return Accepted(job.id, int(answer[2]))
        case b"dup":
            return Accepted(answer[1].decode(), int(answer[2]), duplicate=True)
        case b"full":
            return Full(job.id, answer[1].decode(), int(answer[2]))
        case b"conflict":
            return KeyConflict(job.id, answer[1].decode())
    raise JobDecodeError(f"job {job.id}: the queue answered {answer[0]!r}, which this version does not know")


def encode_outcome(outcome: Outcome, draw: float) -> list[Any]:
    match outcome:
        case Done():
            return [outcome.id, outcome.token, "done", outcome.variant or "", 0]
        case Failed():
            kind = "retry" if outcome.retry else "failed"
            return [outcome.id, outcome.token, kind, outcome.error[: limits.MAX_ERROR_CHARS], draw]
        case Missed():
            return [outcome.id, outcome.token, "missed", outcome.error[: limits.MAX_ERROR_CHARS], 0]
        case Lost():
            return [outcome.id, outcome.token, "lost", outcome.error[: limits.MAX_ERROR_CHARS], 0]
    return [outcome.id, outcome.token, "release", "", 0]


def decode_fields(flat: list[bytes]) -> dict[str, str]:
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return {
        FIELDS[name.decode()]: value.decode(errors="replace")
        for name, value in pairs
        if name.decode() in FIELDS
    }


def decode_record(id: str, flat: list[bytes], result: bytes | None) -> JobStatus:
    fields: dict[str, Any] = decode_fields(flat)
    fields["state"] = STATES.get(fields.get("state", ""))
    return decode_status(id, fields, result)


def rows_per_s(counts: Mapping[str, bytes], now_ms: int) -> float | None:
    """The recent rate at which rows ended, from the counts that the scripts keep."""
    if "rt" not in counts:
        return None
    last_ms = int(counts["rt"])
    return limits.rows_per_s(float(counts["rr"]), int(counts.get("r0", last_ms)), last_ms, now_ms)
