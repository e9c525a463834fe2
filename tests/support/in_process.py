"""A policy file served in this process: real artifacts and runners behind the real router, without Ray."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from optimizers import artifact, runner
from optimizers.tensors import Array, pack, unpack
from router.ingress.http.application import Ingress
from router.online.dispatcher import OnlineDispatcher
from router.policy import Policy, read
from router.policy.artifacts import read_examples, read_manifests
from router.policy.facts import MeasuredVariant
from router.service.metrics import Recorder
from router.service.requests import ServedModel
from router.service.service import Service
from workers.online import BatchRunner
from workers.queue.contract import Done, Outcome
from workers.queue.memory.queue import MemoryQueue
from workers.queue.settings import settings_from


@dataclass
class Machine:
    """Stands between the router and one replica: counts, holds up, slows down."""

    replica: BatchRunner
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    slower_s: dict[str, float] = field(default_factory=dict)
    fails: set[str] = field(default_factory=set)
    rows: list[tuple[str, int]] = field(default_factory=list)

    async def send(self, variant: str, message: bytes, replica: str = "") -> bytes:
        self.rows.append((variant, sum(unpack(message)[1]["rows"])))
        await self.gate.wait()
        if variant in self.fails:
            raise RuntimeError("this variant is broken")
        reply = await self.replica.run(variant, message)
        slower_s = self.slower_s.get(variant, 0.0)
        if not slower_s:
            return reply
        await asyncio.sleep(slower_s)
        outputs, parameters = unpack(reply)
        return pack(outputs, {**parameters, "run_ms": parameters["run_ms"] + slower_s * 1_000.0})


@dataclass
class InProcess:
    """One model's router and what it counted. ``artifacts`` is the folder of its variants."""

    policy: Policy
    model: str
    machine: Machine
    queue: MemoryQueue
    recorder: Recorder
    service: Service
    client: httpx.AsyncClient
    artifacts: Path

    async def infer(
        self,
        rows: Array,
        budget: str = "1000",
        headers: Mapping[str, str] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> httpx.Response:
        (spec,) = self.service.models[self.model].inputs
        tensor = {"name": spec.name, "datatype": spec.datatype, "shape": list(rows.shape)}
        body = {"inputs": [tensor | {"data": rows.ravel().tolist()}], "parameters": dict(parameters or {})}
        about = {"Latency-Budget-Ms": budget, **(headers or {})}
        return await self.client.post(f"/v2/models/{self.model}/infer", json=body, headers=about)

    async def work(self) -> int:
        """Be the batch worker once, with the variant that the policy names. Gives the number of jobs."""
        section = self.policy.models[self.model].batch
        assert section is not None
        opened = runner.load(artifact.read(self.artifacts / section.variant), threads=section.threads)
        leases = await self.queue.claim(1000, 30_000, "worker")
        outcomes: list[Outcome] = [
            Done(x.id, x.token, pack(opened.run(unpack(x.payload)[0])), section.variant) for x in leases
        ]
        await self.queue.settle(outcomes)
        opened.close()
        return len(leases)

    def counted(self, outcome: str) -> Counter[str]:
        """Requests with this outcome by variant."""
        found: Counter[str] = Counter()
        for (_, _, _, variant, ended), count in self.recorder.requests.items():
            if ended == outcome:
                found[variant] += count
        return found


@asynccontextmanager
async def in_process(file: Path) -> AsyncIterator[InProcess]:
    """Serve the one model of a policy file; the working directory is where its artifacts count from."""
    policy, recorder = read(file), Recorder()
    ((name, model),) = policy.models.items()
    manifests = read_manifests(policy, str(file))[name]
    assert model.online is not None
    machine = Machine(BatchRunner(name, str(model.artifacts), model.online.variants, model.online.threads))
    machine.gate.set()
    first = next(iter(manifests.values()))
    best_first = sorted(model.online.variants, key=lambda v: manifests[v].quality_drop)
    dispatcher = OnlineDispatcher(
        {v: MeasuredVariant(v, manifests[v].profile, manifests[v].quality_drop) for v in best_first},
        machine.send,
        replicas=1,
        max_batch=model.online.max_batch,
        max_waiting=model.online.max_waiting,
        inputs=first.inputs,
    )
    queue = MemoryQueue(name, settings_from(policy.queue_settings))
    served = ServedModel(name, first.inputs, first.outputs, manifests, dispatcher, queue)
    service = Service(policy, {name: served}, recorder)
    app: Any = Ingress(service, service.readiness(lambda model: True), "1.2.3")
    example = read_examples(policy)[name].batch()
    for variant in best_first * 3:  # as the router does when it starts: estimates learn this machine
        await dispatcher.run(variant, example, float("inf"), droppable=False)
    machine.rows.clear()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        yield InProcess(policy, name, machine, queue, recorder, service, client, model.artifacts)
    machine.gate.set()
    await service.close()
    await dispatcher.close()
    await queue.close()
    machine.replica.close()
