"""The deadline queue on Redis or Valkey: each verb is one script, so each is atomic and may run twice.

Keys and fields are in :mod:`workers.queue.redis.keys`, the scripts in ``lua/``, connections and retries in
:mod:`workers.queue.redis.client`, notifications in :mod:`workers.queue.redis.notify`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from redis.asyncio import Redis

from workers.queue.contract import (
    TOTALS,
    DeadLetter,
    Done,
    Outcome,
    QueueClosed,
    QueueStats,
    Submitted,
    WaitingJob,
)
from workers.queue.job import (
    DEFAULT_ATTEMPTS,
    JobState,
    JobStatus,
    Lease,
    LeaseRef,
    NewJob,
    decode_leases,
    encode_new,
)
from workers.queue.redis.client import Caller, connect, for_blocking_reads
from workers.queue.redis.codec import (
    decode_fields,
    decode_record,
    decode_submitted,
    encode_outcome,
    encode_settings,
    job_parts,
    outcome_parts,
    rows_per_s,
    split,
)
from workers.queue.redis.keys import STATES, Keys
from workers.queue.redis.notify import Notifications
from workers.queue.redis.scripts import Script, load_scripts
from workers.queue.settings import QueueSettings

MAX_CLAIM = 1000


class RedisQueue:
    """A :class:`workers.queue.contract.DeadlineQueue`. Make it in the event loop that uses it.

    ``patience_s`` is how long a call outlasts a server that restarts or refuses. ``replicas`` is how
    many replicas must have a submit or a result before it counts as written. ``poll_s`` is the net
    behind the notifications. ``layout`` says what tensors the jobs are for (see
    :mod:`workers.queue.redis.server_check`): where unfinished jobs are for others, submit, claim and promote
    raise :class:`workers.queue.contract.QueueIncompatible`. ``scripts`` and ``rng`` are there for tests.
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
        layout: str | None = None,
        scripts: Mapping[str, Script] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._model = model
        self.settings = settings or QueueSettings()
        self._keys = Keys.of(model, namespace)
        self._layout = layout
        self._client = client
        self._owns_client = False
        self._poll_s = poll_s
        self._rng = rng or random.Random()
        self._call = Caller(
            client,
            self._keys.base,
            encode_settings(self.settings, layout),
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
        self.settings, self._call.settings = settings, encode_settings(settings, self._layout)

    async def layout(self) -> tuple[str, int]:
        """The layout that was noted last, "" where none was, and how many jobs are unfinished."""
        self._check_open()
        noted, unfinished = await self._call("layout")
        return noted.decode(), unfinished

    async def submit(self, jobs: Sequence[NewJob], *, within_ms: int | None = None) -> list[Submitted]:
        self._check_open()
        answers: list[Submitted] = []
        for part in job_parts(jobs):
            patience_s = min(j.budget_ms for j in part) / 1000 if within_ms is None else within_ms / 1000
            raw = await self._call(
                "submit",
                encode_new(part),
                *(j.payload for j in part),
                patience_s=min(patience_s, self._call.patience_s) if within_ms is None else patience_s,
                durable=True,
            )
            answers += [decode_submitted(job, answer) for job, answer in zip(part, raw, strict=True)]
        return answers

    async def claim(self, n: int, lease_ms: int, worker: str, *, max_rows: int | None = None) -> list[Lease]:
        self._check_open()
        if n < 1:
            return []
        rows = 1 << 52 if max_rows is None else max_rows
        raw = await self._call("claim", min(n, MAX_CLAIM), lease_ms, worker, uuid.uuid4().hex, rows)
        return decode_leases(raw[0], raw[1:])

    async def promote(self, ids: Sequence[str], lease_ms: int, worker: str) -> list[Lease]:
        self._check_open()
        leases: list[Lease] = []
        for part in split(list(dict.fromkeys(ids))):
            raw = await self._call("promote", lease_ms, worker, uuid.uuid4().hex, *part)
            leases += decode_leases(raw[0], raw[1:])
        return leases

    async def extend(self, held: Sequence[LeaseRef], lease_ms: int) -> list[bool]:
        self._check_open()
        kept: list[bool] = []
        for part in split(held):
            raw = await self._call("extend", lease_ms, *(text for h in part for text in h))
            kept += [bool(won) for won in raw]
        return kept

    async def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        self._check_open()
        won: list[bool] = []
        for part in outcome_parts(outcomes):
            rows = [encode_outcome(o, self._rng.random()) for o in part]
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
        return None if raw is None else decode_record(id, raw[0], raw[1])

    async def wait(self, ids: Sequence[str], timeout_s: float) -> list[JobStatus]:
        self._check_open()
        until = time.monotonic() + timeout_s
        with self._notifications.waiters.ended(ids) as event:
            await self._subscribed(until)
            while True:
                event.clear()
                raw = [one for part in split(ids) for one in await self._call("watch", *part)]
                ended = [
                    decode_record(id, r[0], r[1])
                    for id, r in zip(ids, raw, strict=True)
                    if isinstance(r, list)
                ]
                if ended or all(r == 0 for r in raw) or not await self._sleep(event, until):
                    return ended

    async def peek(self, n: int) -> list[WaitingJob]:
        self._check_open()
        raw = await self._call("peek", n)
        return [
            WaitingJob(id.decode(), deadline, rows, tenant.decode(), variant.decode() or None)
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
            rows_per_s=rows_per_s(counts, now),
            totals={name: count(f"t_{name}") for name in TOTALS},
        )

    async def wait_for_work(self, timeout_s: float) -> bool:
        self._check_open()
        until = time.monotonic() + timeout_s
        with self._notifications.waiters.work() as event:
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

    async def dead_letters(self, limit: int = 100) -> list[JobStatus]:
        self._check_open()
        letters: list[JobStatus] = []
        for at in range(0, limit, MAX_CLAIM):
            count, records = await self._call("dead", at, min(MAX_CLAIM, limit - at))
            letters += [decode_record(id.decode(), record, None) for id, record in records]
            if count < MAX_CLAIM:
                break
        return letters

    async def show_dead(self, id: str) -> DeadLetter | None:
        self._check_open()
        raw = await self._call("show_dead", id)
        if raw is None or raw[1] is None:
            return None
        fields = decode_fields(raw[0])
        return DeadLetter(
            decode_record(id, raw[0], None), raw[1], int(fields.get("max_attempts") or DEFAULT_ATTEMPTS)
        )

    async def retry_dead(self, ids: Sequence[str], budget_ms: int) -> list[str]:
        self._check_open()
        moved: list[str] = []
        for part in split(ids):
            raw = await self._call("retry_dead", budget_ms, *part, durable=True)
            moved += [id.decode() for id in raw]
        return moved

    async def drop_dead(self, ids: Sequence[str]) -> list[str]:
        self._check_open()
        return [id.decode() for part in split(ids) for id in await self._call("drop_dead", *part)]

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
