"""A whole router in memory: policy, service and ingress over a numpy replica and the in-memory queue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from optimizers.artifact import Manifest
from optimizers.tensors import TensorSpec, pack, unpack
from router.ingress.http.application import Ingress
from router.online.dispatcher import OnlineDispatcher
from router.policy import parse
from router.policy.reading import digest_of
from router.service.metrics import Recorder
from router.service.requests import ServedModel
from router.service.service import Service
from router.serving.policy_file import PolicyFile
from tests.support.replica import Replica, variant
from tests.support.virtual_time import now_ms
from workers.queue.contract import Done, Failed, Outcome
from workers.queue.memory.queue import MemoryQueue
from workers.queue.settings import QueueSettings

#: Model ``m`` has both sides, ``o`` an online one only.
POLICY = """
models:
  m:
    artifacts: none
    online: {variants: [v, w], max_batch: 8, max_waiting: 4}
    batch: {variant: v, max_batch: 8, max_attempts: 1}
  o:
    artifacts: none
    online: {variants: [v], max_batch: 8}
routes:
  - {name: fast, when: {budget: "<= 500ms"}, to: online}
  - {name: bulk, when: {budget: "> 30s"}, to: batch}
  - {name: flexible, to: online, on_miss: [degrade]}
defaults: {budget: 2s, hold: 10s}
limits: {body: 64KiB, rows: 16}
"""
INPUT, OUTPUT = TensorSpec("x", "FP32", (-1, 1)), TensorSpec("y", "FP32", (-1, 1))
QUEUE_START_MS = 1_800_000_000_000


def manifest(model: str, name: str) -> Manifest:
    return Manifest(
        model=model,
        variant=name,
        runtime="numpy",
        inputs=(INPUT,),
        outputs=(OUTPUT,),
        metric="accuracy",
        quality={"accuracy": 0.9, "quality_drop": 0.0},
        profile=variant(name).profile,
        size_bytes=100,
        parameters=1,
    )


@dataclass
class Served:
    """The parts, for a test to turn: what the replica does, what the queue holds, what was counted."""

    replica: Replica
    queue: MemoryQueue
    service: Service
    recorder: Recorder
    ingress: Ingress
    client: httpx.AsyncClient
    ready: list[bool]

    async def infer(
        self,
        *values: float,
        budget_ms: float = 400,
        path: str = "m",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """POST one request of a row for each value."""
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [len(values), 1], "data": values}]}
        about = {"Latency-Budget-Ms": str(budget_ms), **(headers or {})}
        return await self.client.post(f"/v2/models/{path}/infer", json=body, headers=about)

    async def work(self, fault: str | None = None, retry: bool = False) -> int:
        """Be the batch worker once: run all that waits, or fail it. Gives the number of jobs."""
        leases = await self.queue.claim(100, 30_000, "worker")
        outcomes: list[Outcome] = []
        for lease in leases:
            if fault is None:
                result = pack({"y": unpack(lease.payload)[0]["x"] * np.float32(2)})
                outcomes.append(Done(lease.id, lease.token, result, lease.variant or "v"))
            else:
                outcomes.append(Failed(lease.id, lease.token, fault, retry=retry))
        await self.queue.settle(outcomes)
        return len(leases)


@asynccontextmanager
async def serving(
    replica: Replica | None = None,
    settings: QueueSettings | None = None,
    root_path: str = "",
    policy: str = POLICY,
) -> AsyncIterator[Served]:
    """A router whose every clock is the running loop's virtual one."""
    replica = replica or Replica()
    parsed, recorder = parse(policy), Recorder()
    queue = MemoryQueue("m", settings, now_ms=lambda: QUEUE_START_MS + int(now_ms()))
    models: dict[str, ServedModel] = {}
    for name, model in parsed.models.items():
        assert model.online is not None
        dispatcher = OnlineDispatcher(
            {v: variant(v) for v in model.online.variants},
            replica.send,
            replicas=1,
            max_batch=model.online.max_batch,
            max_waiting=model.online.max_waiting,
            clock=now_ms,
        )
        manifests = {v: manifest(name, v) for v in model.variants}
        has_queue = queue if model.batch else None
        models[name] = ServedModel(name, (INPUT,), (OUTPUT,), manifests, dispatcher, has_queue)
    service, ready = Service(parsed, models, recorder, clock=now_ms), [True]
    file = PolicyFile("policy.yaml", parsed, digest_of(policy))
    ingress = Ingress(service, service.readiness(lambda model: ready[0]), "1.2.3", file.describe)
    app: Any = ingress
    transport = httpx.ASGITransport(app=app, root_path=root_path)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://test{root_path}") as client:
        yield Served(replica, queue, service, recorder, ingress, client, ready)
    for served in models.values():
        if served.online:
            await served.online.close()
    await queue.close()
