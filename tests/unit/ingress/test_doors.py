"""What both doors refuse by name, and what HTTP and gRPC clients may ask beside inference."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from grpc import StatusCode

from router.ingress.codec.not_offered import REQUEST, TENSOR
from router.ingress.grpc import health as grpc_health
from router.ingress.grpc.health import HealthStatus
from router.ingress.grpc.messages import HEALTH_PACKAGE, HEALTH_SERVICE, SERVICE, pool
from router.ingress.grpc.messages import message as oip
from router.ingress.grpc.protocol import set_values
from router.ingress.grpc.raw_message import RawMessage
from tests.support.served import POLICY, Served, serving
from tests.support.virtual_time import in_virtual_time, settled
from tests.unit.ingress.harness import LONG, the_problem
from tests.unit.ingress.test_grpc_methods import Context, door

INFER = "/v2/models/m/infer"
ASKS: dict[str, Any] = {
    "sequence_id": 7,
    "sequence_start": True,
    "sequence_end": True,
    "shared_memory_region": "region",
    "shared_memory_offset": 64,
    "shared_memory_byte_size": 64,
    "classification": 3,
}
PLACES = [("request", name) for name in REQUEST]
PLACES += [(place, name) for place in ("input", "output") for name in TENSOR]


def http_body(place: str, parameters: dict[str, Any]) -> dict[str, Any]:
    tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [3]}
    output: dict[str, Any] = {"name": "y"}
    body: dict[str, Any] = {"inputs": [tensor], "outputs": [output]}
    {"request": body, "input": tensor, "output": output}[place]["parameters"] = parameters
    return body


def grpc_message(place: str, parameters: dict[str, Any]) -> RawMessage:
    asked = oip("ModelInferRequest")(model_name="m")
    tensor = asked.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    tensor.contents.fp32_contents.append(3.0)
    output = asked.outputs.add(name="y")
    set_values({"request": asked, "input": tensor, "output": output}[place].parameters, parameters)
    return RawMessage(asked.SerializeToString())


def test_every_parameter_that_is_not_offered_is_tried() -> None:
    assert set(ASKS) == {*REQUEST, *TENSOR}


@pytest.mark.parametrize(("place", "name"), PLACES)
def test_what_is_asked_for_and_not_done_is_refused_by_name_at_both_doors(place: str, name: str) -> None:
    @in_virtual_time
    async def play() -> None:
        async with serving() as served:
            reply = await served.client.post(INFER, json=http_body(place, {name: ASKS[name]}))
            said, context = the_problem(reply, 400), Context()
            assert f"(parameter '{name}')" in said and place in said
            await door(served).call("ModelInfer", grpc_message(place, {name: ASKS[name]}), context)
            assert (context.code, context.details) == (StatusCode.INVALID_ARGUMENT, said)
            assert served.replica.calls == []

    play()


@pytest.mark.parametrize(("place", "name"), PLACES)
def test_the_protocols_defaults_ask_for_nothing(place: str, name: str) -> None:
    empty = type(ASKS[name])()

    @in_virtual_time
    async def play() -> None:
        async with serving() as served:
            headers, context = {"latency-budget-ms": "400"}, Context()
            reply = await served.client.post(INFER, json=http_body(place, {name: empty}), headers=headers)
            assert reply.status_code == 200, reply.text
            await door(served).call("ModelInfer", grpc_message(place, {name: empty}), context)
            assert context.code is None, context.details

    play()


@in_virtual_time
async def test_parameters_that_mean_nothing_here_are_let_through() -> None:
    parameters = {"priority": 2, "explain": True, "triton_note": "x", "binary_data_output": False}
    async with serving() as served:
        headers = {"latency-budget-ms": "400"}
        reply = await served.client.post(INFER, json=http_body("request", parameters), headers=headers)
        assert reply.status_code == 200
        for place, name in (("request", "binary_data_output"), ("output", "binary_data")):
            reply = await served.client.post(INFER, json=http_body(place, {name: 1}))
            assert f"{name} is 1; it must be true or false" in the_problem(reply, 400)


@in_virtual_time
async def test_an_unknown_version_says_what_a_version_is_here() -> None:
    async with serving() as served:
        said = the_problem(await served.client.get("/v2/models/m/versions/1"), 404)
        assert said == (
            "model 'm' has no variant '1'; it has v, w. A version is the name of a variant here; without one "
            "the router chooses"
        )
        context = Context()
        asked = RawMessage(oip("ModelMetadataRequest")(name="m", version="1").SerializeToString())
        await door(served).call("ModelMetadata", asked, context)
        assert (context.code, context.details) == (StatusCode.NOT_FOUND, said)


PATHS = ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/policy", "/v2/models", "/v2/models/m"]
PATHS += ["/v2/models/m/ready", "/v2/models/m/stats", "/v2/models/m/versions/v", "/openapi.json", "/docs"]
PATHS += ["/v2/models/m/versions/v/ready", "/docs/page.css", "/docs/", "/v2/models/none", "/nothing"]


@in_virtual_time
async def test_head_is_get_without_the_body() -> None:
    async with serving() as served:
        queued = await served.infer(2.0, budget_ms=LONG, headers={"prefer": "respond-async"})
        for path in [*PATHS, queued.headers["location"]]:
            got, head = await served.client.get(path), await served.client.head(path)
            assert (head.status_code, head.content) == (got.status_code, b""), path
            assert head.headers == got.headers
        refused = await served.client.head(INFER)
        assert (refused.status_code, refused.content) == (405, b"")
        assert refused.headers["allow"] == "POST, OPTIONS"


@in_virtual_time
async def test_options_tells_the_methods_of_a_path_to_anybody() -> None:
    async with serving() as served:
        for path, methods in (
            (INFER, "POST, OPTIONS"),
            ("/v2/health/live", "GET, HEAD, OPTIONS"),
            ("/v2/requests/m.1", "GET, HEAD, DELETE, OPTIONS"),
        ):
            reply = await served.client.options(path)
            assert (reply.status_code, reply.content, reply.headers["allow"]) == (204, b"", methods)
            assert not [name for name in reply.headers if name.startswith("access-control")]
        the_problem(await served.client.options("/nothing"), 404)


APP = "https://app.example"


@in_virtual_time
async def test_pages_of_listed_origins_may_call_and_read() -> None:
    async with serving(policy=POLICY + f'cors: {{origins: ["{APP}", "http://localhost:3000"]}}\n') as served:
        asked = {"origin": APP, "access-control-request-method": "POST"}
        reply = await served.client.options(INFER, headers=asked)
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (204, APP)
        assert reply.headers["access-control-allow-methods"] == "POST, OPTIONS"
        allowed = reply.headers["access-control-allow-headers"].split(", ")
        assert {"content-type", "authorization", "x-api-key", "latency-budget-ms", "prefer"} <= set(allowed)
        assert reply.headers["vary"] == "origin"
        for path, status in (("/v2/models", 200), ("/v2/models/none", 404)):
            reply = await served.client.get(path, headers={"origin": APP})
            assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (status, APP)
            assert "retry-after" in reply.headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in reply.headers
        for headers in ({"origin": "https://other.example"}, {"origin": APP + "/"}, {}):
            reply = await served.client.get("/v2/models", headers=headers)
            assert (reply.status_code, reply.headers["vary"]) == (200, "origin")
            assert not [name for name in reply.headers if name.startswith("access-control")]


@in_virtual_time
async def test_a_star_lets_every_page_call_and_never_with_credentials() -> None:
    async with serving(policy=POLICY + 'cors: {origins: ["*"]}\n') as served:
        reply = await served.client.get("/v2", headers={"origin": APP})
        assert reply.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in reply.headers


async def health(served: Served, service: str) -> tuple[HealthStatus | None, Context]:
    context = Context()
    asked = RawMessage(oip("HealthCheckRequest", HEALTH_PACKAGE)(service=service).SerializeToString())
    answer = await door(served).call("Check", asked, context)
    if context.code is not None:
        return None, context
    return HealthStatus(oip("HealthCheckResponse", HEALTH_PACKAGE).FromString(answer.data).status), context


@in_virtual_time
async def test_grpcs_own_health_check_tells_whether_the_router_is_ready() -> None:
    async with serving() as served:
        for service in ("", SERVICE):
            assert (await health(served, service))[0] is HealthStatus.SERVING
        served.ready[0] = False
        assert (await health(served, ""))[0] is HealthStatus.NOT_SERVING
        _, context = await health(served, "other.Service")
        assert context.code is StatusCode.NOT_FOUND and SERVICE in context.details
        context = Context()
        await door(served).call("Check", RawMessage(b"\xff"), context)
        assert context.code is StatusCode.INVALID_ARGUMENT


@in_virtual_time
async def test_a_watcher_is_told_the_health_at_once_and_when_it_changes() -> None:
    seen: list[HealthStatus] = []

    async def watch(served: Served, service: str = "") -> None:
        asked = RawMessage(oip("HealthCheckRequest", HEALTH_PACKAGE)(service=service).SerializeToString())
        async for answer in door(served).watch(asked, Context()):
            seen.append(
                HealthStatus(oip("HealthCheckResponse", HEALTH_PACKAGE).FromString(answer.data).status)
            )

    async with serving() as served:
        task = asyncio.create_task(watch(served))
        await settled()
        assert seen == [HealthStatus.SERVING]
        await asyncio.sleep(10)
        served.ready[0] = False
        await asyncio.sleep(2)
        served.ready[0] = True
        await asyncio.sleep(2)
        assert seen == [HealthStatus.SERVING, HealthStatus.NOT_SERVING, HealthStatus.SERVING]
        task.cancel()
        other = asyncio.create_task(watch(served, "other.Service"))
        await settled()
        assert seen[3:] == [HealthStatus.SERVICE_UNKNOWN]
        other.cancel()
        context = Context(from_peer="ipv4:10.0.0.9:5")
        closed = door(served, admits=lambda peer: False)
        assert [answer async for answer in closed.watch(RawMessage(), context)] == []
        assert context.code is StatusCode.PERMISSION_DENIED


@in_virtual_time
async def test_watchers_are_bounded_and_free_their_place_when_they_leave() -> None:
    async with serving() as served:
        opened = door(served)
        streams = [opened.watch(RawMessage(), Context()) for _ in range(100)]
        for stream in streams:
            await anext(stream)
        context = Context()
        assert [answer async for answer in opened.watch(RawMessage(), context)] == []
        assert context.code is StatusCode.RESOURCE_EXHAUSTED
        await streams[0].aclose()
        again = opened.watch(RawMessage(), Context())
        assert (await anext(again)).data == grpc_health.answer(HealthStatus.SERVING)
        for stream in (*streams, again):
            await stream.aclose()
        context = Context()
        assert [answer async for answer in opened.watch(RawMessage(b"\xff"), context)] == []
        assert context.code is StatusCode.INVALID_ARGUMENT


def test_the_health_service_is_grpcs_own() -> None:
    assert HEALTH_SERVICE == "grpc.health.v1.Health"
    methods = pool().FindServiceByName(HEALTH_SERVICE).methods
    assert [(method.name, method.server_streaming) for method in methods] == [
        ("Check", False),
        ("Watch", True),
    ]
    statuses = oip("HealthCheckResponse", HEALTH_PACKAGE).DESCRIPTOR.enum_types_by_name["ServingStatus"]
    assert {status.name: status.number for status in statuses.values} == dict(HealthStatus.__members__)
    # On the wire: field 1, a varint.
    assert grpc_health.answer(HealthStatus.SERVING) == b"\x08\x01"


@in_virtual_time
async def test_an_answer_that_cannot_be_packed_is_a_problem_document_and_no_broken_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no memory")

    monkeypatch.setattr("router.ingress.encodings.compress", broken)
    async with serving() as served:
        reply = await served.client.get("/openapi.json", headers={"accept-encoding": "gzip"})
        assert the_problem(reply, 500) == "an internal error; the router's log has it"
        assert orjson.loads(reply.content)["status"] == 500
