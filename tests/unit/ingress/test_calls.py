"""A door needs a transport and no logic of its own: a third one, in memory, beside HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode

from optimizers.tensors import TensorSpec
from router.ingress.calls import CallHandler, answer_parameters, explained
from router.ingress.codec.protocol import DecodedBody, MalformedRequest
from router.ingress.codec.steps import Steps
from router.ingress.grpc.raw_message import RawMessage
from router.policy import parse
from router.service.api_keys import hash_key
from router.service.errors import NotPermitted, Refused, UnknownModel
from router.service.request_log import RequestLog
from router.service.requests import Answer, InferenceRequest, PendingRequest
from tests.support.served import POLICY, serving
from tests.support.virtual_time import in_virtual_time, now_ms
from tests.unit.ingress.harness import LONG, the_problem
from tests.unit.ingress.test_grpc_methods import Context, ask, door

KEYED = POLICY + f"tenants: {{acme: {{keys: ['{hash_key('right')}'], models: [m], rate: 1/s}}}}\n"
KEY = {b"x-api-key": b"right"}


@dataclass
class InMemory:
    """Requests as Python values: a body is a model's name and numbers, an answer is a dictionary."""

    body: tuple[str, list[float]]
    parameters: dict[str, Any] = field(default_factory=dict)
    headers: Mapping[bytes, bytes] = field(default_factory=dict)
    model: str = ""
    variant: str | None = None
    can_defer: bool = True
    outputs: dict[str, bool] | None = None
    reads: int = 0

    async def read(self, limit: int) -> list[float]:
        self.reads += 1
        self.model, values = self.body
        return values

    def decode(self, body: Any, inputs: Sequence[TensorSpec], max_rows: int) -> Steps[DecodedBody]:
        yield from ()
        array = np.array(body, "<f4").reshape(-1, 1)
        return DecodedBody({inputs[0].name: array}, "7", self.parameters, self.outputs)

    def deferred(self, pending: PendingRequest, request: InferenceRequest) -> dict[str, Any]:
        return {"pending": pending.id, "hold_s": request.hold_s}

    def answered(
        self, answer: Answer, outputs: Sequence[TensorSpec], body: DecodedBody, request: InferenceRequest
    ) -> Steps[dict[str, Any]]:
        yield from ()
        given = {spec.name: answer.outputs[spec.name].ravel().tolist() for spec in outputs}
        return {"id": body.id, "outputs": given, **answer_parameters(answer)}


@in_virtual_time
async def test_a_third_door_answers_defers_and_logs_without_logic_of_its_own() -> None:
    lines: list[str] = []
    async with serving() as served:
        handler = CallHandler(served.service, RequestLog(lambda: 1.0, lines.append))
        fast = InMemory(("m", [3.0, 4.0]), {"latency_budget_ms": 400})
        answer = await handler.infer(fast, now_ms())
        assert (answer["id"], answer["outputs"]) == ("7", {"y": [6.0, 8.0]})
        assert (answer["route"], answer["path"], answer["deadline_met"]) == ("fast", "online", True)
        bulk = InMemory(("m", [1.0]), {"latency_budget_ms": LONG}, {b"prefer": b"respond-async"})
        assert (await handler.infer(bulk, now_ms()))["pending"].startswith("m.bulk.")
        with pytest.raises(UnknownModel, match="no model 'none' here; there is m, o"):
            await handler.infer(InMemory(("none", [1.0])), now_ms())
        with pytest.raises(MalformedRequest, match="unknown output 'z'; the model gives y"):
            await handler.infer(InMemory(("m", [1.0]), outputs={"z": False}), now_ms())
    assert ['"outcome":"answered"' in lines[0], '"outcome":"queued"' in lines[1]] == [True, True]
    assert ['"status":404' in lines[2], '"status":400' in lines[3], len(lines)] == [True, True, 4]


@pytest.mark.parametrize(("can_defer", "hold_s"), [(True, 10.0), (False, 40.0)])
@in_virtual_time
async def test_a_door_that_cannot_defer_waits_for_the_whole_budget(can_defer: bool, hold_s: float) -> None:
    async with serving() as served:
        began_ms = now_ms()
        call = InMemory(("m", [1.0]), {"latency_budget_ms": 40_000}, can_defer=can_defer)
        answer = await CallHandler(served.service).infer(call, began_ms)
        assert answer["hold_s"] == hold_s
        assert now_ms() - began_ms == pytest.approx(hold_s * 1_000.0, abs=100)


@in_virtual_time
async def test_a_model_named_by_the_address_is_refused_unread_and_one_named_by_the_body_undecoded() -> None:
    def never(*_: Any) -> Iterator[None]:
        raise AssertionError("the body was decoded")

    async with serving() as served:
        served.service.apply_policy(parse(KEYED))
        addressed, inside = (
            InMemory(("o", [1.0]), headers=KEY, model="o"),
            InMemory(("o", [1.0]), headers=KEY),
        )
        addressed.decode = inside.decode = never  # type: ignore[method-assign,assignment]
        for call in (addressed, inside):
            with pytest.raises(NotPermitted, match="tenant 'acme' may not use model 'o'"):
                await CallHandler(served.service).infer(call, now_ms())
        assert (addressed.reads, inside.reads) == (0, 1)
        over = InMemory(("m", [1.0]), headers=KEY)
        with pytest.raises(Refused):  # the second counted request within a second, at a rate of one
            await CallHandler(served.service).infer(over, now_ms())
        assert over.reads == 0


@in_virtual_time
async def test_both_doors_say_that_a_model_is_not_allowed_before_what_is_wrong_with_the_body() -> None:
    async with serving() as served:
        served.service.apply_policy(parse(KEYED.replace("rate: 1/s", "rate: 100/s")))
        reply = await served.client.post("/v2/models/o/infer", content=b"{", headers={"x-api-key": "right"})
        said, context = the_problem(reply, 403), Context([("x-api-key", "right")])
        twice = RawMessage(ask(1.0).data + ask(1.0, model="o").data)  # merged: input 'x' is given twice
        await door(served).call("ModelInfer", twice, context)
        assert (context.code, context.details) == (StatusCode.PERMISSION_DENIED, said)


def test_an_error_that_nobody_expected_is_logged_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise RuntimeError("secret")
    except RuntimeError as error:
        shown = explained(error, "request GET /x")
    assert (shown.status, "secret" in shown.detail) == (500, False)
    assert "request GET /x failed" in caplog.text and "secret" in caplog.text
    assert explained(UnknownModel("no model"), "x").status == 404
