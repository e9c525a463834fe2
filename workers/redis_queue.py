"""The deadline queue on Redis or Valkey: each verb is one script, so each is atomic and may run twice.

Keys and fields are in :mod:`workers.keys`, the scripts in ``lua/``, connections and retries in
:mod:`workers.redis_client`, notifications in :mod:`workers.notify`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
from redis.asyncio import Redis

from workers.job import (
    Held,
    JobDecodeError,
    JobState,
    JobStatus,
    Lease,
    NewJob,
    decode_leases,
    decode_status,
    encode_new,
)
from workers.keys import FIELDS, STATES, Keys
from workers.notify import Notifications
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
from workers.redis_client import Caller, connect, for_blocking_reads
from workers.scripts import Script, load_scripts

#: One script call takes at most this much, so that no call keeps the server from others for long.
MAX_JOBS_PER_CALL = 256
MAX_BYTES_PER_CALL = 4 << 20
MAX_CLAIM = 1000
_MAX_ERROR_CHARS = 2000
_TOTALS = ("submitted", "done", "failed", "expired", "cancelled", "dead", "retried", "lost")


class RedisQueue:
    """A :class:`workers.queue.DeadlineQueue`. Make it in the event loop that uses it.

    ``patience_s`` is how long a call outlasts a server that restarts or refuses. ``replicas`` is how
    many replicas must have a submit or a result before it counts as written. ``poll_s`` is the net
    behind the notifications. ``scripts`` and ``rng`` are there for tests.
    """

    def __init__(
        self,
        client: Redis,
        model: str,
        settings: QueueSettings | None = None,
        *,
        patience_s: float = 10.0,
        replicas: int = 0,
        poll_s: float = 5.0,
        namespace: str = "hr",
        scripts: Mapping[str, Script] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._model = model
        self.settings = settings or QueueSettings()
        self._keys = Keys.of(model, namespace)
        self._client = client
        self._owns_client = False
        self._poll_s = poll_s
        self._rng = rng or random.Random()
        self._call = Caller(
            client,
            self._keys.base,
            _encode_settings(self.settings),
            scripts or load_scripts(),
            patience_s=patience_s,
            replicas=replicas,
        )
        self._notifications = Notifications(for_blocking_reads(client), self._keys)
        self._closed = False

    @classmethod
    def open(cls, url: str, model: str, settings: QueueSettings | None = None, **options: Any) -> RedisQueue:
        """A queue with a client of its own, which :meth:`close` closes too."""
        queue = cls(connect(url), model, settings, **options)
        queue._owns_client = True
        return queue

    @property
    def model(self) -> str:
        return self._model

    def configure(self, settings: QueueSettings) -> None:
        self.settings, self._call.settings = settings, _encode_settings(settings)

    async def submit(self, jobs: Sequence[NewJob], *, within_ms: int | None = None) -> list[Submitted]:
        self._check_open()
        answers: list[Submitted] = []
        for part in _parts(jobs):
            patience_s = min(j.budget_ms for j in part) / 1000 if within_ms is None else within_ms / 1000
            raw = await self._call(
                "submit",
                encode_new(part),
                *(j.payload for j in part),
                patience_s=min(patience_s, self._call.patience_s) if within_ms is None else patience_s,
                durable=True,
            )
            answers += [_submitted(job, answer) for job, answer in zip(part, raw, strict=True)]
        return answers

    async def claim(self, n: int, lease_ms: int, worker: str, *, max_rows: int | None = None) -> list[Lease]:
        self._check_open()
        if n < 1:
            return []
        rows = 1 << 52 if max_rows is None else max_rows
        raw = await self._call("claim", min(n, MAX_CLAIM), lease_ms, worker, _new_token(), rows)
        return decode_leases(raw[0], raw[1:])

    async def promote(self, ids: Sequence[str], lease_ms: int, worker: str) -> list[Lease]:
        self._check_open()
        if not ids:
            return []
        raw = await self._call("promote", lease_ms, worker, _new_token(), *ids)
        return decode_leases(raw[0], raw[1:])

    async def extend(self, held: Sequence[Held], lease_ms: int) -> list[bool]:
        self._check_open()
        if not held:
            return []
        raw = await self._call("extend", lease_ms, *(part for h in held for part in h))
        return [bool(won) for won in raw]

    async def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        self._check_open()
        won: list[bool] = []
        for part in _outcome_parts(outcomes):
            rows = [_outcome_row(o, self._rng.random()) for o in part]
            results = [o.result for o in part if isinstance(o, Done)]
            raw = await self._call("settle", orjson.dumps(rows), *results, durable=True)
            won += [bool(w) for w in raw]
        return won

    async def cancel(self, id: str) -> JobState | None:
        self._check_open()
        raw = await self._call("cancel", id)
        return None if raw is None else STATES[raw.decode()]

    async def state(self, id: str) -> JobStatus | None:
        self._check_open()
        (raw,) = await self._call("state", id)
        return None if raw is None else _status(id, raw[0], raw[1])

    async def wait(self, ids: Sequence[str], timeout_s: float) -> list[JobStatus]:
        self._check_open()
        until = time.monotonic() + timeout_s
        with self._notifications.ended(ids) as event:
            await self._subscribed(until)
            while True:
                event.clear()
                raw = await self._call("watch", *ids)
                ended = [
                    _status(id, r[0], r[1]) for id, r in zip(ids, raw, strict=True) if isinstance(r, list)
                ]
                if ended or all(r == 0 for r in raw) or not await self._sleep(event, until):
                    return ended

    async def peek(self, n: int) -> list[Waiting]:
        self._check_open()
        raw = await self._call("peek", n)
        return [
            Waiting(id.decode(), deadline, rows, tenant.decode(), variant.decode() or None)
            for id, deadline, rows, tenant, variant in raw
        ]

    async def stats(self) -> QueueStats:
        self._check_open()
        now, leased, delayed, dead, earliest, flat = await self._call("stats")
        counts = {k.decode(): v for k, v in zip(flat[::2], flat[1::2], strict=True)}

        def count(name: str) -> int:
            return int(counts.get(name, 0))

        return QueueStats(
            now_ms=now,
            jobs=count("jobs"),
            rows=count("rows"),
            bytes=count("bytes"),
            waiting_jobs=count("jobs") - leased - delayed,
            waiting_rows=count("wrows"),
            delayed_jobs=delayed,
            leased_jobs=leased,
            dead_letters=dead,
            earliest_deadline_ms=earliest,
            rows_per_s=_rate(counts, now),
            totals={name: count(f"t_{name}") for name in _TOTALS},
        )

    async def wait_for_work(self, timeout_s: float) -> bool:
        self._check_open()
        until = time.monotonic() + timeout_s
        with self._notifications.work() as event:
            await self._subscribed(until)
            while True:
                event.clear()
                left_s = max(0.0, until - time.monotonic())
                due_ms = await self._call("sleep", math.ceil(left_s * 1000))
                if due_ms == 0:
                    return True
                woken_at = until if due_ms < 0 else min(until, time.monotonic() + due_ms / 1000)
                if not await self._sleep(event, woken_at) and time.monotonic() >= until:
                    return False

    async def reap(self) -> int:
        self._check_open()
        moved = 0
        while True:
            some = int(await self._call("reap", MAX_CLAIM))
            moved += some
            if some < MAX_CLAIM:
                return moved

    async def dead_letters(self, limit: int = 100, offset: int = 0) -> list[JobStatus]:
        self._check_open()
        raw = await self._call("dead", offset, limit)
        return [_status(id.decode(), record, None) for id, record in raw]

    async def show_dead(self, id: str) -> DeadLetter | None:
        self._check_open()
        raw = await self._call("show_dead", id)
        if raw is None or raw[1] is None:
            return None
        fields = _fields(raw[0])
        return DeadLetter(_status(id, raw[0], None), raw[1], int(fields.get("max_attempts") or 3))

    async def retry_dead(self, ids: Sequence[str], budget_ms: int) -> list[str]:
        self._check_open()
        return [id.decode() for id in await self._call("retry_dead", budget_ms, *ids, durable=True)]

    async def drop_dead(self, ids: Sequence[str]) -> list[str]:
        self._check_open()
        return [id.decode() for id in await self._call("drop_dead", *ids)]

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._notifications.close()
        if self._owns_client:
            await self._client.aclose()
            await self._client.connection_pool.disconnect()

    def _check_open(self) -> None:
        if self._closed:
            raise QueueClosed(f"the queue of model {self._model!r} was closed in this process")

    async def _subscribed(self, until: float) -> None:
        """Subscribe before looking, so that nothing falls between. The poll bridges a server away."""
        left_s = max(0.0, min(until - time.monotonic(), self._poll_s))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                await self._notifications.ready()
        self._check_open()

    async def _sleep(self, event: asyncio.Event, until: float) -> bool:
        """Until the event or the next poll (True: look again) or ``until`` (False)."""
        left_s = until - time.monotonic()
        if left_s <= 0:
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(left_s, self._poll_s)):
                await event.wait()
        self._check_open()
        return True


def _encode_settings(settings: QueueSettings) -> bytes:
    return orjson.dumps(
        {
            "max_jobs": settings.max_jobs,
            "max_bytes": settings.max_bytes,
            # Absent rather than null: to a script JSON's null is not false.
            **({"tenant_jobs": settings.tenant_jobs} if settings.tenant_jobs is not None else {}),
            **({"tenant_bytes": settings.tenant_bytes} if settings.tenant_bytes is not None else {}),
            # [jobs, bytes], 0 where a tenant has no bound of its own.
            "bounds": {name: [jobs or 0, size or 0] for name, (jobs, size) in settings.bounds.items()},
            "weights": dict(settings.weights),
            "keep": settings.keep_ms,
            "keep_dead": settings.keep_dead_ms,
            "max_dead": settings.max_dead_letters,
            "max_lost": settings.max_lost_leases,
            "suspect_after": settings.suspect_after,
            "retry_base": settings.retry.base_ms,
            "retry_cap": settings.retry.cap_ms,
        }
    )


def _new_token() -> str:
    return uuid.uuid4().hex


def _split(items: Sequence[Any], size: Callable[[Any], int]) -> list[list[Any]]:
    parts: list[list[Any]] = []
    count = total = 0
    for item in items:
        if not parts or count == MAX_JOBS_PER_CALL or total + size(item) > MAX_BYTES_PER_CALL:
            parts.append([])
            count = total = 0
        parts[-1].append(item)
        count += 1
        total += size(item)
    return parts


def _parts(jobs: Sequence[NewJob]) -> list[list[NewJob]]:
    return _split(jobs, lambda job: len(job.payload))


def _outcome_parts(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    return _split(outcomes, lambda o: len(o.result) if isinstance(o, Done) else 0)


def _submitted(job: NewJob, answer: list[Any]) -> Submitted:
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


def _outcome_row(outcome: Outcome, draw: float) -> list[Any]:
    match outcome:
        case Done():
            return [outcome.id, outcome.token, "done", outcome.variant or "", 0]
        case Failed():
            kind = "retry" if outcome.retry else "failed"
            return [outcome.id, outcome.token, kind, outcome.error[:_MAX_ERROR_CHARS], draw]
        case Missed():
            return [outcome.id, outcome.token, "missed", outcome.error[:_MAX_ERROR_CHARS], 0]
    return [outcome.id, outcome.token, "release", "", 0]


def _fields(flat: list[bytes]) -> dict[str, str]:
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return {
        FIELDS[name.decode()]: value.decode(errors="replace")
        for name, value in pairs
        if name.decode() in FIELDS
    }


def _status(id: str, flat: list[bytes], result: bytes | None) -> JobStatus:
    fields: dict[str, Any] = _fields(flat)
    fields["state"] = STATES.get(fields.get("state", ""))
    return decode_status(id, fields, result)


def _rate(counts: Mapping[str, bytes], now_ms: int) -> float | None:
    """Rows per second over the last seconds; the same window as in ``lua/submit.lua``."""
    if "rt" not in counts:
        return None
    last_ms = int(counts["rt"])
    if now_ms - last_ms > 60_000:
        return None
    span_s = max(1.0, min(10.0, (last_ms - int(counts.get("r0", last_ms))) / 1000))
    return float(counts["rr"]) * math.exp((last_ms - now_ms) / 10_000) / span_s
