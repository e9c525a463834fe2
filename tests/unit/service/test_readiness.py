"""What is ready: the router whatever its queues do, and each model by what its routes need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from router.policy import Policy
from router.service.readiness import needs_queue
from tests.support.served import Served, serving
from tests.support.virtual_time import in_virtual_time, settled
from tests.unit.ingress.harness import down
from tests.unit.ingress.test_grpc_methods import told

ONLINE = {"artifacts": "a", "online": {"variants": ["v"]}}
QUEUED = {"artifacts": "a", "batch": {"variant": "v"}}
BATCH = {"name": "bulk", "to": "batch"}
#: By this policy everything of model m goes to its queue.
ALL_QUEUED = """
models:
  m: {artifacts: none, online: {variants: [v, w]}, batch: {variant: v}}
  o: {artifacts: none, online: {variants: [v]}}
routes: [{name: bulk, when: {model: m}, to: batch}]
"""


@pytest.mark.parametrize(
    ("model", "routes", "needed"),
    [
        (ONLINE, [], False),
        (QUEUED, [], True),
        ({**ONLINE, **QUEUED}, [], False),
        ({**ONLINE, **QUEUED}, [BATCH], True),
        ({**ONLINE, **QUEUED}, [{**BATCH, "when": {"model": "m"}}], True),
        ({**ONLINE, **QUEUED}, [{**BATCH, "when": {"model": "other"}}], False),
        ({**ONLINE, **QUEUED}, [{**BATCH, "when": {"budget": "> 30s"}}], False),
        ({**ONLINE, **QUEUED}, [{"name": "now", "when": {"budget": "<= 1s"}, "to": "online"}, BATCH], False),
    ],
)
def test_a_model_needs_its_queue_where_nothing_leads_online(
    model: dict[str, Any], routes: list[dict[str, Any]], needed: bool
) -> None:
    policy = Policy.model_validate({"models": {"m": model, "other": ONLINE}, "routes": routes})
    assert needs_queue(policy, "m") is needed


@asynccontextmanager
async def with_queue_down(**settings: Any) -> AsyncIterator[Served]:
    async with serving(**settings) as served:
        watching = asyncio.create_task(served.service.queued.watch())
        await settled()
        assert (await served.client.get("/v2/health/ready")).json() == {"ready": True, "queues": "known"}
        served.queue.stats = down  # type: ignore[method-assign]
        yield served
        watching.cancel()


@in_virtual_time
async def test_a_queue_that_is_down_takes_no_router_out_and_its_state_is_told_apart() -> None:
    async with with_queue_down() as served:
        await asyncio.sleep(1.1)
        server = await served.client.get("/v2/health/ready")
        assert (server.status_code, server.json()) == (200, {"ready": True, "queues": "unknown"})
        for model, queue in (("m", "unknown"), ("o", "none")):
            answer = await served.client.get(f"/v2/models/{model}/ready")
            assert (answer.status_code, answer.json()) == (
                200,
                {"name": model, "ready": True, "queue": queue},
            )


@in_virtual_time
async def test_a_model_whose_routes_all_need_the_queue_is_not_ready_without_it_and_the_others_are() -> None:
    async with with_queue_down(policy=ALL_QUEUED) as served:
        await asyncio.sleep(1.1)
        assert (await served.client.get("/v2/health/ready")).status_code == 200
        assert (await served.client.get("/v2/models/o/ready")).status_code == 200
        stuck = await served.client.get("/v2/models/m/ready")
        assert (stuck.status_code, stuck.json()["ready"], stuck.json()["queue"]) == (503, False, "unknown")


@in_virtual_time
async def test_grpc_tells_the_same_as_http() -> None:
    async with with_queue_down(policy=ALL_QUEUED) as served:
        await asyncio.sleep(1.1)
        assert not (await told(served, "ModelReady", name="m")).ready
        assert (await told(served, "ModelReady", name="o")).ready
        assert (await told(served, "ServerReady")).ready
