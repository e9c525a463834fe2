"""A latency budget runs from the moment a request arrives: sending and reading its body is part of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest

from router.ingress.grpc.raw_message import RawMessage
from tests.support.served import Served, serving
from tests.support.virtual_time import in_virtual_time, now_ms
from tests.unit.ingress.harness import LONG, the_problem
from tests.unit.ingress.test_grpc_methods import Context, ask, door

INFER = "/v2/models/m/infer"
BODY = orjson.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [3]}]})


async def pass_by(seconds: float) -> None:
    """Let virtual time pass."""
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, over.set)
    await over.wait()


async def slowly(seconds: float) -> AsyncIterator[bytes]:
    yield BODY[:10]
    await pass_by(seconds)
    yield BODY[10:]


@in_virtual_time
async def test_a_budget_that_is_over_when_the_body_is_there_is_504_before_any_work() -> None:
    async with serving() as served:
        reply = await served.client.post(INFER, content=slowly(0.15), headers={"latency-budget-ms": "50"})
        said = the_problem(reply, 504)
        assert said.startswith("the budget of 50 ms was over when the request had been read, after 150 ms")
        assert served.replica.calls == []
        assert served.recorder.requests["m", "fast", "none", "", "expired"] == 1
        assert served.recorder.deadlines["m", "fast", False] == 1


@in_virtual_time
async def test_a_budget_that_nothing_could_have_kept_is_refused_as_on_arrival() -> None:
    async with serving() as served:
        reply = await served.client.post(INFER, content=slowly(0.15), headers={"latency-budget-ms": "1"})
        assert "predicted" in the_problem(reply, 429) and "retry-after" not in reply.headers
        assert served.replica.calls == []


@in_virtual_time
async def test_what_is_left_of_the_budget_decides_and_its_end_is_the_deadline() -> None:
    async with serving() as served:
        # 12 ms of run time do not fit into the 10 ms that are left, though they would into the whole.
        refused = await served.client.post(INFER, content=slowly(0.09), headers={"latency-budget-ms": "100"})
        assert "the budget is 100 ms and 10 ms of it are left" in the_problem(refused, 429)
        served.replica.hop_ms = 290.0
        late = await served.client.post(INFER, content=slowly(0.3), headers={"latency-budget-ms": "600"})
        assert (late.status_code, late.headers["deadline-met"]) == (200, "false")
        assert (
            late.headers["route"] == "flexible"
        )  # routes ask for what the caller has named, not what is left
        assert served.recorder.deadlines["m", "flexible", False] == 1
        assert served.recorder.latencies["m", "flexible", "online"] == [pytest.approx(300 + 290 + 11)]


@in_virtual_time
async def test_a_queued_request_has_what_is_left() -> None:
    async with serving() as served:
        headers = {"latency-budget-ms": str(LONG), "prefer": "respond-async"}
        await served.client.post(INFER, content=slowly(5.0), headers=headers)
        (lease,) = await served.queue.claim(1, 1_000, "worker")
        assert await left_ms(served, lease.id) == LONG - 5_000


async def left_ms(served: Served, job: str) -> float:
    """How long after now the job expires."""
    began = now_ms()
    while (status := await served.queue.state(job)) is not None and not status.state.terminal:
        await pass_by(0.5)
        await served.queue.reap()
    assert status is not None
    return round((now_ms() - began) / 1_000.0) * 1_000.0


@in_virtual_time
async def test_a_grpc_call_has_arrived_when_its_handler_is_called() -> None:
    async with serving() as served:
        entered = door(served)
        steps = entered._calls.turns.run

        async def slow(work: object) -> object:
            await asyncio.sleep(0.5)
            return await steps(work)  # type: ignore[arg-type]

        entered._calls.turns.run = slow  # type: ignore[assignment,method-assign]
        context = Context()
        assert await entered.call("ModelInfer", ask(3.0), context) is not None
        assert "was over when the request had been read, after 500 ms" in context.details
        assert context.code is not None and context.code.name == "DEADLINE_EXCEEDED"
        assert served.replica.calls == [] and isinstance(ask(1.0), RawMessage)
