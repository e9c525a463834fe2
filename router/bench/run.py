"""The open loop: each request goes at its time, whether or not earlier ones are answered.

Latency counts from the moment a request was meant to go, so a sender that is late makes the server look
worse, never better; how late it was is part of the report.
"""

from __future__ import annotations

import asyncio
import gc
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from router.bench.bodies import Bodies
from router.bench.http_pool import ExchangeError, HttpPool, TimedReply
from router.bench.tally import RequestRecord, tallied
from router.simulate.result import SimulationResult
from router.simulate.workload import Request

#: How long after its deadline an answer is still waited for: a late answer is not the same as none.
GRACE_S = 30.0
_POLL_S = 20
#: Connections that are there before the first request: as many as may go in so many milliseconds.
_WARM_MS, _WARM_LEAST, _WARM_MOST = 100.0, 16, 512
#: A sender that is behind lets answers in after so many requests.
_YIELD_EVERY = 8
#: A sender this late, beside the answers' median, has measured itself.
_BLAME_SHARE, _BLAME_MS = 0.1, 2.0


@dataclass(slots=True)
class Replayed:
    """What came of it: a `SimulationResult`, as a simulation gives it, each request's end, and the sender's
    lateness."""

    result: SimulationResult
    records: Sequence[RequestRecord] = ()
    lateness_ms: array[float] = field(default_factory=lambda: array("d"))
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def lateness_ms_p99(self) -> float:
        ordered = sorted(self.lateness_ms)
        return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] if ordered else 0.0

    @property
    def sender_was_bottleneck(self) -> bool:
        """Whether the sender's own lateness is a notable part of the latencies that were measured."""
        times = sorted(ms for tally in self.result.routes.values() for ms in tally.latencies_ms)
        median = times[len(times) // 2] if times else 0.0
        return self.lateness_ms_p99 > max(_BLAME_MS, _BLAME_SHARE * median)


async def replay(
    pool: HttpPool,
    requests: Sequence[Request],
    bodies: Bodies,
    *,
    seed: int = 7,
    variant: str | None = None,
    drops: Mapping[tuple[str, str], float] | None = None,
    progress: Callable[[int], None] = lambda sent: None,
) -> Replayed:
    """Send ``requests`` (ascending by time) and wait for the last answer.

    ``variant`` pins every request to it that does not name one itself. ``drops`` are quality drops by model
    and variant, for the mean beside the latencies. Nothing is raised for a request that fails: it is counted.
    """
    sender = _Sender(pool, bodies, variant)
    await pool.warm(min(_WARM_MOST, max(_WARM_LEAST, _densest(requests))))
    with _collected():
        await sender.send(requests, progress)
    result = tallied(sender.records, seed, drops or {})
    result.seconds = max(sender.ended_s - sender.began_s, 1e-9)
    return Replayed(result, sender.records, sender.lateness_ms, sender.failures)


def _densest(requests: Sequence[Request]) -> int:
    """The most requests within ``_WARM_MS``."""
    most = first = 0
    for last, request in enumerate(requests):
        while request.at_ms - requests[first].at_ms > _WARM_MS:
            first += 1
        most = max(most, last - first + 1)
    return most


@contextmanager
def _collected() -> Iterator[None]:
    """No collection walks through what was there before: in a large process that takes long."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Sender:
    def __init__(self, pool: HttpPool, bodies: Bodies, variant: str | None) -> None:
        self._pool, self._bodies = pool, bodies
        self._pin = f"/versions/{variant}" if variant else ""
        self.records: list[RequestRecord] = []
        self.lateness_ms: array[float] = array("d")
        self.failures: dict[str, int] = {}
        self.began_s = self.ended_s = 0.0

    async def send(self, requests: Sequence[Request], progress: Callable[[int], None]) -> None:
        running: set[asyncio.Task[None]] = set()
        self.began_s = self.ended_s = time.perf_counter()
        for number, request in enumerate(requests):
            delay_s = self.began_s + request.at_ms / 1e3 - time.perf_counter()
            if delay_s > 0:
                await asyncio.sleep(delay_s)
            elif number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            task = asyncio.create_task(self._one(request, number))
            running.add(task)
            task.add_done_callback(running.discard)
            progress(number + 1)
        await asyncio.gather(*running)

    async def _one(self, request: Request, number: int) -> None:
        meant_s = self.began_s + request.at_ms / 1e3
        body = self._bodies.of(request, number)
        pin = f"/versions/{request.variant}" if request.variant else self._pin
        path = f"{self._pool.prefix}/v2/models/{request.model}{pin}/infer"
        head = b"Latency-Budget-Ms: %s\r\n" % f"{request.budget_ms:.6g}".encode() + body.head
        if request.tenant:
            head += f"Tenant: {request.tenant}\r\n".encode()
        head += b"".join(b"%s: %s\r\n" % header for header in request.headers.items())
        give_up_s = meant_s + request.budget_ms / 1e3 + GRACE_S
        try:
            left_s = give_up_s - time.perf_counter()
            reply = await self._pool.exchange("POST", path, head, body.content, left_s)
            self.lateness_ms.append((reply.sent_s - meant_s) * 1e3)
            reply = await self._followed(reply, give_up_s)
        except ExchangeError as error:
            self._failed(str(error))
            now_s = time.perf_counter()
            record = RequestRecord.lost(request, (now_s - meant_s) * 1e3)
        else:
            now_s = reply.at_s
            record = RequestRecord.of(request, reply, (now_s - meant_s) * 1e3)
            if record.outcome == "failed":
                self._failed(f"status {reply.status}: {reply.body[:200].decode('utf-8', 'replace')}")
        self.ended_s = max(self.ended_s, now_s)
        self.records.append(record)

    async def _followed(self, reply: TimedReply, give_up_s: float) -> TimedReply:
        """The answer itself, where the server said that it comes later."""
        first = reply
        while reply.status == 202:
            where = first.headers.get("location")
            left_s = give_up_s - time.perf_counter()
            if where is None or left_s <= 0:
                raise ExchangeError("accepted, and no answer came" if where else "202 without a Location")
            path = where if where.startswith("/") else "/" + where.split("/", 3)[-1]
            # The poll's own end must come before this side gives up on it.
            wait_s = max(1, min(_POLL_S, int(left_s)))
            reply = await self._pool.exchange("GET", f"{path}?wait={wait_s}", timeout_s=wait_s + GRACE_S)
        if reply is first:
            return reply
        # What was promised was told when it was accepted.
        return TimedReply(
            reply.status, {**first.headers, **reply.headers}, reply.body, first.sent_s, reply.at_s
        )

    def _failed(self, why: str) -> None:
        self.failures[why] = self.failures.get(why, 0) + 1
