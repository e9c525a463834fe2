"""The same requests through the service and through the simulator: what either decides of each of them.

The service is the real one, behind its ingress, with the in-memory queue and the real dispatcher. Its replica
and its batch worker take, in virtual time, exactly what the simulator's take.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

import httpx
import numpy as np
import orjson

from optimizers.artifact import Manifest
from optimizers.tensors import Tensors, TensorSpec, pack, rows_of, unpack
from router.ingress.http.application import Ingress
from router.online.dispatcher import OnlineDispatcher
from router.policy import Policy
from router.policy.facts import MeasuredVariant
from router.service.metrics import Recorder
from router.service.requests import ServedModel
from router.service.service import Service
from router.simulate.door import routing_draws
from router.simulate.engine import Settings, Simulation
from router.simulate.faults import Fault
from router.simulate.requests import Outcome as Ended
from router.simulate.requests import SimulatedRequest
from router.simulate.timing import Costs
from router.simulate.workload import Request
from tests.support.virtual_time import VirtualLoop, now_ms
from workers.batching import LEAST_SHARE, BoundTable, plan_batch
from workers.queue.contract import Done, Missed, Outcome, QueueStats, QueueUnavailable, Submitted
from workers.queue.job import Lease, NewJob
from workers.queue.memory.queue import MemoryQueue
from workers.queue.settings import settings_from

HOP_MS, CLAIM_MS = 1.0, 1.0
_PATIENCE_MS = 10_000
_INPUT, _OUTPUT = TensorSpec("x", "FP32", (-1, 1)), TensorSpec("y", "FP32", (-1, 1))
_START_MS = 1_800_000_000_000


def wall_clock_s(at_ms: float) -> float:
    """Seconds since 1970 at a moment of the run: a minute a day."""
    return _START_MS / 1_000.0 + at_ms * 1.44


class Decided(NamedTuple):
    """What became of one request at its arrival. ``refused_for`` is empty where it was taken."""

    route: str
    path: str
    variant: str
    refused_for: str


Variants = dict[str, dict[str, MeasuredVariant]]


class Case(NamedTuple):
    """What is played: by how many routers, and when a model's queue is out of reach."""

    policy: Policy
    variants: Variants
    requests: Sequence[Request]
    seed: int
    routers: int = 1
    outages: tuple[Fault, ...] = ()


def simulated(case: Case) -> list[Decided]:
    """The simulator's decisions, where nothing takes another time than its median."""
    costs = Costs(
        door_ms=0.0,
        wire_ms=0.0,
        hop_ms=HOP_MS,
        hop_sigma=0.0,
        claim_ms=CLAIM_MS,
        routers=case.routers,
    )
    played = _Noted(case.policy, case.variants, Settings(case.seed, costs, case.outages))
    result = played.run(case.requests)
    assert result.violations == []
    return [played.ends[id(request)] for request in case.requests]


class _Noted(Simulation):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ends: dict[int, Decided] = {}

    def _end(self, asked: SimulatedRequest, outcome: Ended) -> None:
        super()._end(asked, outcome)
        refused_for = asked.refused_for if outcome == "refused" else ""
        path = "online" if asked.online else "batch"
        found = Decided(
            asked.route, "" if refused_for else path, "" if refused_for else asked.variant, refused_for
        )
        self.ends[id(asked.request)] = found


def served(case: Case) -> list[Decided]:
    """The service's decisions."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(_served(case))


async def _served(case: Case) -> list[Decided]:
    began_ms, running = now_ms(), []
    async with _services(case) as clients:
        for number, request in enumerate(case.requests):
            await asyncio.sleep((began_ms + request.at_ms - now_ms()) / 1_000.0)
            batch = case.policy.models[request.model].batch
            client = clients[number % case.routers]
            running.append(asyncio.create_task(_ask(client, request, batch.variant if batch else "")))
        return await asyncio.gather(*running)


async def _ask(client: httpx.AsyncClient, request: Request, own: str) -> Decided:
    """``own`` is the variant of the batch worker, who has none to be told."""
    noted: list[tuple[str, str, str]] = []
    _noted.set(noted)
    pin = f"/versions/{request.variant}" if request.variant else ""
    tensor = {"name": "x", "datatype": "FP32", "shape": [request.rows, 1], "data": [1.0] * request.rows}
    headers = [(b"latency-budget-ms", f"{request.budget_ms:.6g}".encode()), *request.headers.items()]
    if request.tenant:
        headers.append((b"tenant", request.tenant.encode()))
    response = await client.post(
        f"/v2/models/{request.model}{pin}/infer",
        content=orjson.dumps({"inputs": [tensor], "parameters": dict(request.parameters)}),
        headers=headers,
    )
    ended, status = noted[-1] if noted else ("", "", ""), response.status_code
    if status in (200, 202, 503, 504):
        route, path, variant = ended
        return Decided(route, path, variant if status == 503 else variant or own, "")
    known = {403: "forbidden", 413: "size"}
    return Decided(ended[0], "", "", known.get(status) or response.json().get("kind", response.text))


#: Route, path and variant of each end that the service counts for the request of this task.
_noted: ContextVar[list[tuple[str, str, str]]] = ContextVar("noted")


class _Recorder(Recorder):
    def request(self, model: str, route: str, path: str, variant: str, *rest: Any, **more: Any) -> None:
        super().request(model, route, path, variant, *rest, **more)
        _noted.get().append((route, path, variant))


@asynccontextmanager
async def _services(case: Case) -> AsyncIterator[list[httpx.AsyncClient]]:
    """A client of each router; replicas and queues are the same for all of them."""
    began_ms, draws = now_ms(), routing_draws(case.seed)
    replicas = {name: _Replica(case.variants[name]) for name in case.policy.models}
    queues = {name: _Queue(name, case) for name, model in case.policy.models.items() if model.batch}
    workers = [_Worker(queue, case) for queue in queues.values()]
    tasks = [asyncio.create_task(worker.run()) for worker in workers]
    dispatchers: list[OnlineDispatcher] = []
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(case.routers):
            models = {name: _model(case, name, replicas[name], queues.get(name)) for name in replicas}
            dispatchers += [model.online for model in models.values() if model.online]
            service = Service(
                case.policy,
                models,
                _Recorder(),
                clock=now_ms,
                routers=case.routers,
                epoch_s=lambda: wall_clock_s(now_ms() - began_ms),
                draw=draws.random,
            )
            tasks.append(asyncio.create_task(service.queued.watch()))
            app: Any = Ingress(service, lambda: True, "1.2.3")
            transport = httpx.ASGITransport(app=app)
            client = httpx.AsyncClient(transport=transport, base_url="http://test")
            clients.append(await stack.enter_async_context(client))
        tasks.append(asyncio.create_task(_probe(dispatchers)))
        yield clients
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for dispatcher in dispatchers:
            await dispatcher.close()


def _model(case: Case, name: str, replica: _Replica, queue: _Queue | None) -> ServedModel:
    model = case.policy.models[name]
    known = {v: case.variants[name][v] for v in model.variants}
    dispatcher = None
    if model.online:
        best_first = sorted(model.online.variants, key=lambda v: known[v].quality_drop)
        dispatcher = OnlineDispatcher(
            {v: known[v] for v in best_first},
            replica.send,
            replicas=1,
            max_batch=model.online.max_batch,
            max_waiting=model.online.max_waiting,
            in_time=model.online.in_time,
            clock=now_ms,
        )
        dispatcher.set_replicas(["0.0"])
    manifests = {v: _manifest(name, known[v]) for v in known}
    return ServedModel(name, (_INPUT,), (_OUTPUT,), manifests, dispatcher, queue)


def _manifest(model: str, variant: MeasuredVariant) -> Manifest:
    return Manifest(
        model=model,
        variant=variant.name,
        runtime="numpy",
        inputs=(_INPUT,),
        outputs=(_OUTPUT,),
        metric="accuracy",
        quality={"accuracy": 0.9, "quality_drop": variant.quality_drop},
        profile=variant.profile,
        size_bytes=100,
        parameters=1,
    )


@dataclass
class _Replica:
    """Takes half a hop there, what its variant's profile says, and half a hop back."""

    variants: dict[str, MeasuredVariant]
    free: asyncio.Lock = field(default_factory=asyncio.Lock)
    ran_ms: float = 0.0

    async def send(self, name: str, message: bytes, replica: str = "") -> bytes:
        inputs, _ = unpack(message)
        await asyncio.sleep(HOP_MS / 2_000.0)
        there_ms = now_ms()
        async with self.free:
            wait_ms, run_ms = now_ms() - there_ms, self.variants[name].profile.predict_ms(rows_of(inputs))
            await asyncio.sleep(run_ms / 1_000.0)
        await asyncio.sleep(HOP_MS / 2_000.0)
        self.ran_ms += run_ms
        return pack({"y": inputs["x"]}, {"wait_ms": wait_ms, "run_ms": run_ms, "ran_ms": self.ran_ms})


async def _probe(dispatchers: Sequence[OnlineDispatcher]) -> None:
    """Ten times a second, as in the simulator: whether or not the last probe has ended."""
    zeros, began_s = {"x": np.zeros((1, 1), np.float32)}, now_ms() / 1_000.0
    async with asyncio.TaskGroup() as group:
        for number in count(1):
            for dispatcher in dispatchers:
                variant = dispatcher.stale_variant()
                if variant is not None:
                    group.create_task(_run(dispatcher, variant, zeros))
            await asyncio.sleep(began_s + number / 10.0 - now_ms() / 1_000.0)


async def _run(dispatcher: OnlineDispatcher, variant: str, inputs: Tensors) -> None:
    await dispatcher.run(variant, inputs, float("inf"), droppable=False)


class _Queue(MemoryQueue):
    """Its server is out of reach while it is ``away``: calls wait for it, as those of a Redis queue do."""

    def __init__(self, name: str, case: Case) -> None:
        settings = settings_from(case.policy.queue_settings)
        super().__init__(name, settings, now_ms=lambda: _START_MS + int(now_ms()))
        self.away = [
            (now_ms() + fault.at_ms, now_ms() + fault.at_ms + fault.lasts_ms)
            for fault in case.outages
            if fault.model == name
        ]

    async def _reach(self, within_ms: float) -> None:
        until_ms = now_ms() + within_ms
        for begin_ms, end_ms in self.away:
            if begin_ms <= now_ms() < end_ms:
                await asyncio.sleep((min(end_ms, until_ms) - now_ms()) / 1_000.0)
                if until_ms < end_ms:
                    raise QueueUnavailable("no answer")

    async def submit(self, jobs: Sequence[NewJob], *, within_ms: int | None = None) -> list[Submitted]:
        within = min(_PATIENCE_MS, *(job.budget_ms for job in jobs)) if within_ms is None else within_ms
        await self._reach(within)
        return await super().submit(jobs)

    async def claim(self, n: int, lease_ms: int, worker: str, *, max_rows: int | None = None) -> list[Lease]:
        await self._reach(math.inf)
        return await super().claim(n, lease_ms, worker, max_rows=max_rows)

    async def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        await self._reach(math.inf)
        return await super().settle(outcomes)

    async def stats(self) -> QueueStats:
        await self._reach(math.inf)
        return await super().stats()

    async def reap(self) -> int:
        await self._reach(math.inf)
        return await super().reap()


class _Worker:
    """The one batch worker: what `workers.batch.loop` does, as long as `router.simulate` lets it take."""

    def __init__(self, queue: MemoryQueue, case: Case) -> None:
        self._queue, self._variants = queue, case.variants[queue.model]
        section = case.policy.models[queue.model].batch
        assert section is not None
        self._own = section.variant
        self._tables = {v: BoundTable.of(x.profile, section.max_batch) for v, x in self._variants.items()}
        self._waiting: list[Lease] = []

    async def run(self) -> None:
        while True:
            if not self._waiting:
                rows = self._tables[self._own].max_rows
                leases = await self._queue.claim(rows, 30_000, "worker", max_rows=rows)
                self._waiting = sorted(leases, key=lambda lease: lease.deadline_ms)
            if self._waiting:
                await self._batch()
            else:
                await self._queue.wait_for_work(60.0)

    async def _batch(self) -> None:
        name = self._waiting[0].variant or self._own
        table = self._tables[name]
        same = [lease for lease in self._waiting if (lease.variant or self._own) == name]
        dropped, chosen = plan_batch(
            same, table, float(_START_MS + int(now_ms())), table.efficient(LEAST_SHARE)
        )
        gone = {lease.id for lease in (*dropped, *chosen)}
        self._waiting = [lease for lease in self._waiting if lease.id not in gone]
        await self._queue.settle([Missed(x.id, x.token, "too late") for x in dropped])
        if chosen:
            rows = sum(lease.rows for lease in chosen)
            run_ms = self._variants[name].profile.predict_ms(rows)
            await asyncio.sleep((run_ms + CLAIM_MS) / 1_000.0)
            result = pack({"y": np.zeros((1, 1), np.float32)})
            await self._queue.settle([Done(x.id, x.token, result, name) for x in chosen])
