"""The SDK against the router's own ingress, in virtual time: keys, refusals, chosen outputs, ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from router import (
    AsyncClient,
    DeadlineExceeded,
    Forbidden,
    HybridRouterError,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    JobUnknown,
    ModelNotFound,
    Rejected,
    Unauthenticated,
)
from router.service.api_keys import hash_key, new_key
from tests.support.replica import Replica
from tests.support.served import POLICY, Served, serving
from tests.support.virtual_time import in_virtual_time, now_ms

ACME, ROGUE = new_key(), new_key()
GUARDED = f"""{POLICY}
tenants:
  acme: {{keys: ["{hash_key(ACME)}"]}}
  rogue: {{keys: ["{hash_key(ROGUE)}"], models: [o], rate: 6/min, burst: 1}}
"""


def client_of(served: Served, **settings: Any) -> AsyncClient:
    app: Any = served.ingress
    transport = httpx.ASGITransport(app=app)
    return AsyncClient("http://router.test", transport=transport, clock=lambda: now_ms() / 1e3, **settings)


@asynccontextmanager
async def asking(
    replica: Replica | None = None, policy: str = POLICY, **settings: Any
) -> AsyncIterator[tuple[AsyncClient, Served]]:
    async with serving(replica, policy=policy) as served, client_of(served, **settings) as client:
        yield client, served


@in_virtual_time
async def test_an_answer_in_time_tells_how_it_came_to_be() -> None:
    async with asking() as (client, _):
        result = await client.infer("m", [[1.5], [2.0]], budget="400ms")
        assert result.outputs["y"].tolist() == [[3.0], [4.0]]
        assert result.outputs["y"].dtype == np.float32
        assert (result.route, result.path, result.variant, result.deadline_met) == (
            "fast",
            "online",
            "v",
            True,
        )
        assert result.predicted_ms is not None and result.predicted_ms >= 12.0
        assert result.latency_ms == pytest.approx(12.0, abs=1)


@in_virtual_time
async def test_a_queued_request_is_followed_and_gives_the_chosen_outputs() -> None:
    async with asking() as (client, served):
        job = await client.submit("m", [[1.0]], budget="10min", outputs=["y"])
        assert await job.state() == "pending"
        again = await client.submit("m", [[1.0]], budget="10min", idempotency_key="one")
        same = await client.submit("m", [[1.0]], budget="10min", idempotency_key="one")
        assert again.id == same.id != job.id
        waiting = asyncio.create_task(job.result())
        assert await served.work() == 2
        assert list((await waiting).outputs) == ["y"]
        assert (await client.job(again.id, outputs=["y"]).result()).path == "batch"
        with pytest.raises(InvalidRequest, match="output"):
            await client.submit("m", [[1.0]], budget="10min", outputs=["z"])


@in_virtual_time
async def test_the_calls_of_a_block_share_its_budget_down_to_the_server() -> None:
    async with asking() as (client, _), client.deadline("100ms") as deadline:
        for left_ms in (89, 78):
            await client.infer("m", [[1.0]])
            assert deadline.left_ms == pytest.approx(left_ms, abs=1.5)
        await asyncio.sleep(0.09)
        with pytest.raises(DeadlineExceeded):
            await client.infer("m", [[1.0]])


async def _cancelled(client: AsyncClient, served: Served) -> None:
    job = await client.submit("m", [[1.0]], budget="10min")
    assert await client.cancel(job.id)
    assert await job.state() == "cancelled"
    await job.result()


async def _failed(client: AsyncClient, served: Served) -> None:
    job = await client.submit("m", [[1.0]], budget="10min")
    await served.work(fault="the rows are bad")
    assert await job.state() == "failed"
    await job.result()


async def _expired(client: AsyncClient, served: Served) -> None:
    job = await client.submit("m", [[1.0]], budget="31s")
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(32, passed.set)
    await passed.wait()
    await served.work()  # whoever claims sees that it is too late
    await job.result()


async def _rows(client: AsyncClient, served: Served) -> None:
    await client.infer("m", np.ones((17, 1)), budget="10min")


async def _body(client: AsyncClient, served: Served) -> None:
    await client.infer("m", np.ones((20_000, 1)), budget="10min")


async def _model(client: AsyncClient, served: Served) -> None:
    await client.infer("n", [[1.0]])


async def _variant(client: AsyncClient, served: Served) -> None:
    await client.infer("m", [[1.0]], variant="x")


async def _unknown(client: AsyncClient, served: Served) -> None:
    await client.job("m.bulk.0123456789abcdef01234567").result()


async def _refused(client: AsyncClient, served: Served) -> None:
    await client.infer("m", [[1.0]], budget="5ms")


async def _reused(client: AsyncClient, served: Served) -> None:
    await client.submit("m", [[1.0]], budget="10min", idempotency_key="k")
    await client.submit("m", [[2.0]], budget="10min", idempotency_key="k")


@pytest.mark.parametrize(
    ("ask", "kind", "status"),
    [
        (_cancelled, JobCancelled, 410),
        (_failed, JobFailed, 422),
        (_expired, DeadlineExceeded, 504),
        (_rows, InvalidRequest, 413),
        (_body, InvalidRequest, 413),
        (_model, ModelNotFound, 404),
        (_variant, ModelNotFound, 404),
        (_unknown, JobUnknown, 404),
        (_refused, Rejected, 429),
        (_reused, InvalidRequest, 409),
    ],
)
def test_what_the_router_refuses_or_ends_is_a_typed_error_with_its_reason(
    ask: Any, kind: type[HybridRouterError], status: int
) -> None:
    @in_virtual_time
    async def run() -> None:
        async with asking() as (client, served):
            with pytest.raises(HybridRouterError) as caught:
                await ask(client, served)
            assert (type(caught.value), caught.value.status) == (kind, status)
            assert str(caught.value.problem["detail"]) in str(caught.value)

    run()


@in_virtual_time
async def test_keys_open_their_own_tenants_door_and_no_other() -> None:
    async with serving(policy=GUARDED) as served:
        clients = {name: client_of(served, key=key) for name, key in (("acme", ACME), ("rogue", ROGUE))}
        job = await clients["acme"].submit("m", [[1.0]], budget="10min")
        with pytest.raises(JobUnknown):
            await clients["rogue"].job(job.id).state()
        with pytest.raises(JobUnknown):
            await clients["rogue"].cancel(job.id)
        assert [model.name for model in await clients["acme"].models()] == ["m", "o"]
        assert [model.name for model in await clients["rogue"].models()] == ["o"]
        with pytest.raises(Forbidden, match="may not use model 'm'"):
            await clients["rogue"].infer("m", [[1.0]])
        for key, says in (("", "an API key is needed"), (new_key(), "not known here")):
            async with client_of(served, key=key) as stranger:
                with pytest.raises(Unauthenticated, match=says):
                    await stranger.infer("m", [[1.0]])
        async with client_of(served, key=ACME, tenant="rogue") as posing:
            with pytest.raises(Forbidden, match="does not belong"):
                await posing.infer("m", [[1.0]])
        for client in clients.values():
            await client.close()


@in_virtual_time
async def test_a_quota_is_waited_for_within_the_budget_and_told_beyond_it() -> None:
    async with asking(policy=GUARDED, key=ROGUE) as (client, _):
        await client.infer("o", [[1.0]], budget="400ms")
        with pytest.raises(Rejected) as caught:
            await client.infer("o", [[1.0]], budget="400ms")
        assert caught.value.retry_after_s == pytest.approx(10, abs=1)
        begin_ms = now_ms()
        result = await client.infer("o", [[1.0]], budget="25s")
        assert result.outputs["y"].tolist() == [[2.0]]
        assert now_ms() - begin_ms > 9_000


@in_virtual_time
async def test_many_jobs_are_polled_within_one_place_in_flight() -> None:
    policy = f'{POLICY}\ntenants:\n  acme: {{keys: ["{hash_key(ACME)}"], in_flight: 1}}\n'
    async with asking(policy=policy, key=ACME) as (client, served):
        jobs = [await client.submit("m", [[float(n)]], budget="1min") for n in range(5)]
        results = [asyncio.create_task(job.result()) for job in jobs]
        await asyncio.sleep(5)
        assert await served.work() == 5
        done_ms = now_ms()
        answers = await asyncio.gather(*results)
        assert [answer.outputs["y"].tolist() for answer in answers] == [[[2.0 * n]] for n in range(5)]
        assert now_ms() - done_ms < 2_000  # those without the place ask every second
