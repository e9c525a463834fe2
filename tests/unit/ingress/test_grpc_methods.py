"""The gRPC door over a whole router in memory: answers, statuses, budgets, holds, and callers who leave."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode

from router.ingress.grpc.messages import message, parse
from router.ingress.grpc.methods import GrpcIngress
from router.ingress.grpc.protocol import set_values, values
from router.ingress.grpc.raw_message import RawMessage
from router.ingress.grpc.statuses import grpc_status
from router.ingress.semantics import HttpError
from router.policy import parse as read_policy
from router.service.auth import hash_key
from router.service.errors import (
    Conflict,
    DeadlinePassed,
    NotAuthenticated,
    NotPermitted,
    Refused,
    RowsFailed,
    TooManyRows,
    Unavailable,
    UnknownRequest,
)
from tests.support.replica import Replica
from tests.support.served import POLICY, Served, serving
from tests.support.virtual_time import in_virtual_time, now_ms, settled


@dataclass
class Context:
    """A call's context, as Serve hands it to a handler."""

    metadata: list[tuple[str, str]] = field(default_factory=list)
    from_peer: str = "ipv4:127.0.0.1:5"
    code: StatusCode | None = None
    details: str = ""
    trailing: list[tuple[str, str]] = field(default_factory=lambda: [("request_id", "serve's")])

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self.metadata

    def peer(self) -> str:
        return self.from_peer

    def trailing_metadata(self) -> list[tuple[str, str]]:
        return self.trailing

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str]]) -> None:
        self.trailing = trailing_metadata

    def set_code(self, code: Any) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


def door(served: Served, **settings: Any) -> GrpcIngress:
    return GrpcIngress(
        served.service, served.service.readiness(lambda model: served.ready[0]), "1.2.3", **settings
    )


def ask(
    *row_values: float, model: str = "m", variant: str = "", output: str = "", **parameters: Any
) -> RawMessage:
    asked = message("ModelInferRequest")(model_name=model, model_version=variant)
    set_values(asked.parameters, {"latency_budget_ms": 400, **parameters})
    asked.inputs.add(name="x", datatype="FP32", shape=[len(row_values), 1])
    asked.raw_input_contents.append(np.array(row_values, "<f4").tobytes())
    if output:
        asked.outputs.add(name=output)
    return RawMessage(asked.SerializeToString())


async def infer(served: Served, request: RawMessage, context: Context | None = None) -> tuple[Any, Context]:
    context = context or Context()
    answer = await door(served).call("ModelInfer", request, context)
    return parse("ModelInferResponse", answer.SerializeToString()), context


async def told(served: Served, method: str, **asked: Any) -> Any:
    context = Context()
    request = RawMessage(message(f"{method}Request")(**asked).SerializeToString())
    answer = await door(served).call(method, request, context)
    assert context.code is None, context.details
    return parse(f"{method}Response", answer.SerializeToString())


@in_virtual_time
async def test_an_answer_tells_its_route_variant_and_times() -> None:
    async with serving() as served:
        answer, context = await infer(served, ask(3.0, 4.0))
    assert context.code is None
    assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [6.0, 8.0]
    assert (answer.model_name, answer.model_version) == ("m", "v")
    parameters = values(answer.parameters)
    assert parameters.pop("predicted_ms") > 0
    assert parameters == {
        "route": "fast", "path": "online", "variant": "v", "queued_ms": 0.0, "deadline_met": True
    }  # fmt: skip


@in_virtual_time
async def test_the_trace_comes_back_behind_the_answer() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with serving() as served:
        _, context = await infer(served, ask(1.0), Context([("traceparent", trace)]))
    assert context.trailing == [("request_id", "serve's"), ("traceparent", trace)]


@in_virtual_time
async def test_the_servers_and_the_models_metadata() -> None:
    async with serving() as served:
        assert (await told(served, "ServerLive")).live
        assert (await told(served, "ServerReady")).ready
        assert (await told(served, "ModelReady", name="m", version="v")).ready
        assert not (await told(served, "ModelReady", name="nope")).ready
        assert not (await told(served, "ModelReady", name="m", version="nope")).ready
        server, model = await told(served, "ServerMetadata"), await told(served, "ModelMetadata", name="m")
        pinned = await told(served, "ModelMetadata", name="m", version="w")
        served.ready[0] = False
        assert not (await told(served, "ServerReady")).ready
        assert not (await told(served, "ModelReady", name="m")).ready
    assert (server.name, server.version) == ("hybrid-router", "1.2.3")
    assert list(model.versions) == ["v", "w"]
    assert list(pinned.versions) == ["w"]
    assert (model.inputs[0].name, model.inputs[0].datatype, list(model.inputs[0].shape)) == (
        "x",
        "FP32",
        [-1, 1],
    )
    assert model.outputs[0].name == "y"


@in_virtual_time
async def test_a_version_pins_the_variant() -> None:
    async with serving() as served:
        answer, _ = await infer(served, ask(1.0, variant="w"))
    assert answer.model_version == "w"


@pytest.mark.parametrize(
    ("request_", "code", "says"),
    [
        (ask(1.0, model="nope"), StatusCode.NOT_FOUND, "no model 'nope' here; there is m, o"),
        (ask(1.0, variant="nope"), StatusCode.NOT_FOUND, "no variant 'nope'"),
        (ask(1.0, output="z"), StatusCode.INVALID_ARGUMENT, "unknown output 'z'; the model gives y"),
        (ask(1.0, latency_budget_ms="soon"), StatusCode.INVALID_ARGUMENT, "parameter latency_budget_ms: "),
        (ask(1.0, latency_budget_ms=0.5), StatusCode.RESOURCE_EXHAUSTED, "predicted"),
        (ask(*range(17)), StatusCode.INVALID_ARGUMENT, "17 rows in one request"),
        (ask(*range(20_000)), StatusCode.INVALID_ARGUMENT, "limits.body is 65536"),
        (ask(), StatusCode.INVALID_ARGUMENT, "at least one row"),
        (RawMessage(b"\xff\xff"), StatusCode.INVALID_ARGUMENT, "no valid inference.ModelInferRequest"),
    ],
)
@in_virtual_time
async def test_what_is_wrong_with_a_request_has_its_code_and_a_sentence(
    request_: RawMessage, code: StatusCode, says: str
) -> None:
    async with serving() as served:
        answer, context = await infer(served, request_)
    assert context.code == code
    assert says in context.details
    assert "\n" not in context.details
    assert not answer.outputs


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotAuthenticated("x"), StatusCode.UNAUTHENTICATED),
        (NotPermitted("x"), StatusCode.PERMISSION_DENIED),
        (UnknownRequest("x"), StatusCode.NOT_FOUND),
        (TooManyRows("x"), StatusCode.INVALID_ARGUMENT),
        (Conflict("x"), StatusCode.ALREADY_EXISTS),
        (RowsFailed("x"), StatusCode.INVALID_ARGUMENT),
        (DeadlinePassed("x"), StatusCode.DEADLINE_EXCEEDED),
        (Unavailable("x"), StatusCode.UNAVAILABLE),
        (Refused("x", "unserved", None), StatusCode.INVALID_ARGUMENT),
        (Refused("x", "full", 1.0), StatusCode.RESOURCE_EXHAUSTED),
        (HttpError(500, "x"), StatusCode.INTERNAL),
        (RuntimeError("x"), StatusCode.INTERNAL),
    ],
)
def test_each_error_has_its_code(error: Exception, code: StatusCode) -> None:
    assert grpc_status(error)[:2] == (code, "x")


def test_a_refusal_says_when_to_come_back() -> None:
    trailing = dict(grpc_status(Refused("busy", "late", 1.25)).trailing)
    assert trailing == {"retry-after": "2", "retry-after-ms": "1250", "kind": "late"}


def test_a_long_reason_is_cut_for_the_trailers() -> None:
    detail = grpc_status(Unavailable("word \n" * 1_000)).detail
    assert len(detail) == 1_000
    assert detail.endswith("...")


@in_virtual_time
async def test_an_error_nobody_foresaw_is_internal_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as served:
        served.service._models["m"].variants = None  # type: ignore[assignment]
        _, context = await infer(served, ask(1.0, variant="v"))
    assert (context.code, context.details) == (
        StatusCode.INTERNAL,
        "an internal error; the router's log has it",
    )
    assert "gRPC call ModelInfer failed" in caplog.text


@pytest.mark.parametrize(
    ("parameters", "metadata", "route"),
    [
        ({"latency_budget_ms": 400}, [("latency-budget-ms", "60000")], "fast"),
        ({"latency_budget_ms": 1_000}, [], "flexible"),
        ({"timeout": 400_000}, [], "fast"),
        ({"timeout": 400_000}, [("latency-budget-ms", "1000")], "flexible"),
        ({}, [], "flexible"),
    ],
)
@in_virtual_time
async def test_the_budget_is_the_first_found(
    parameters: dict[str, int], metadata: list[tuple[str, str]], route: str
) -> None:
    asked = parse("ModelInferRequest", ask(1.0).data)
    del asked.parameters["latency_budget_ms"]
    set_values(asked.parameters, parameters)
    async with serving() as served:
        answer, context = await infer(served, RawMessage(asked.SerializeToString()), Context(metadata))
    assert context.code is None, context.details
    assert values(answer.parameters)["route"] == route


@in_virtual_time
async def test_a_queued_request_is_held_and_answered() -> None:
    async with serving() as served:
        call = asyncio.create_task(infer(served, ask(2.0, latency_budget_ms=60_000)))
        await settled()
        assert await served.work() == 1
        answer, context = await call
    assert context.code is None
    assert values(answer.parameters)["path"] == "batch"
    assert answer.id.startswith("m.bulk.")
    assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [4.0]


@in_virtual_time
async def test_a_hold_that_is_over_says_where_the_request_can_be_asked_for() -> None:
    async with serving() as served:
        begun = now_ms()
        asked = ask(2.0, latency_budget_ms=90_000_000)
        _, context = await infer(served, asked, Context([("prefer", "wait=5")]))
        assert now_ms() - begun == pytest.approx(5_000, abs=100)
        trailing = dict(context.trailing)
        assert context.code == StatusCode.DEADLINE_EXCEEDED
        assert trailing["id"] in context.details
        assert (trailing["state"], trailing["location"]) == ("pending", f"/v2/requests/{trailing['id']}")
        await served.work()
        result = await served.client.get(trailing["location"])
    assert result.json()["outputs"][0]["data"] == [4.0]


@in_virtual_time
async def test_without_a_preference_the_hold_is_the_budget() -> None:
    async with serving() as served:
        begun = now_ms()
        _, context = await infer(served, ask(2.0, latency_budget_ms=40_000))
        assert now_ms() - begun == pytest.approx(40_000, abs=1_000)
    assert context.code == StatusCode.DEADLINE_EXCEEDED


@in_virtual_time
async def test_a_caller_who_leaves_takes_the_queued_request_along() -> None:
    async with serving() as served:
        call = asyncio.create_task(infer(served, ask(2.0, latency_budget_ms=60_000)))
        await settled()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert call.cancelled()
        assert await served.work() == 0


@in_virtual_time
async def test_a_caller_who_leaves_costs_the_replica_nothing() -> None:
    replica = Replica()
    async with serving(replica) as served:
        first = asyncio.create_task(infer(served, ask(1.0)))
        await settled()
        leaving = asyncio.create_task(infer(served, ask(7.0)))
        await settled()
        leaving.cancel()
        await first
        await infer(served, ask(2.0))
    assert 7.0 not in [value for call in replica.calls for value in call.values]


@in_virtual_time
async def test_a_peer_that_is_not_admitted_is_told_nothing_else() -> None:
    async with serving() as served:
        context = Context(from_peer="ipv4:10.0.0.9:1")
        await door(served, admits=lambda peer: "127." in peer).call("ServerLive", RawMessage(), context)
    assert context.code == StatusCode.PERMISSION_DENIED


KEYED = POLICY + f"tenants: {{acme: {{keys: ['{hash_key('right')}'], models: [m]}}}}\n"


@pytest.mark.parametrize(
    ("metadata", "model", "code"),
    [
        ([], "m", StatusCode.UNAUTHENTICATED),
        ([("authorization", "Bearer wrong")], "m", StatusCode.UNAUTHENTICATED),
        ([("authorization", "Bearer right")], "m", None),
        ([("x-api-key", "right")], "m", None),
        ([("x-api-key", "right")], "o", StatusCode.PERMISSION_DENIED),
    ],
)
@in_virtual_time
async def test_keys_guard_the_door(
    metadata: list[tuple[str, str]], model: str, code: StatusCode | None
) -> None:
    async with serving() as served:
        served.service.apply_policy(read_policy(KEYED))
        _, context = await infer(served, ask(1.0, model=model), Context(metadata))
    assert context.code == code, context.details
