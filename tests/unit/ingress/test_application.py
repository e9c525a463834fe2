"""The HTTP face over the whole router in memory: answers, waits, and the status of all that is wrong."""

from __future__ import annotations

import asyncio
import gzip
from collections import deque
from collections.abc import MutableMapping
from typing import Any

import numpy as np
import orjson
import pytest

from router.ingress.codec.protocol import HEADER_LENGTH
from router.ingress.http.reading import BodyReader
from router.scheduling.tuning import MARGIN_START
from router.service.errors import Unavailable
from router.service.requests import InferenceRequest
from tests.support.replica import Replica, run_ms
from tests.support.served import Served, serving
from tests.support.virtual_time import in_virtual_time, settled
from tests.unit.ingress.harness import LONG, down, post, the_problem

GOOD = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [3]}]}


@in_virtual_time
async def test_an_online_answer_tells_its_route_variant_and_times() -> None:
    async with serving() as served:
        response = await served.infer(3.0, 4.0)
    assert response.status_code == 200
    body = response.json()
    assert body["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [2, 1], "data": [6.0, 8.0]}]
    assert (body["model_name"], body["model_version"], body["id"]) == ("m", "v", "")
    parameters = body["parameters"]
    assert (parameters["route"], parameters["path"], parameters["variant"]) == ("fast", "online", "v")
    assert parameters["deadline_met"] is True
    headers = response.headers
    assert (headers["route"], headers["path"], headers["variant"]) == ("fast", "online", "v")
    assert (headers["deadline-met"], headers["queued-ms"]) == ("true", "0.000")
    assert float(headers["predicted-ms"]) == pytest.approx((1.0 + MARGIN_START) * (run_ms(2) + 1.0))
    assert served.recorder.requests["m", "fast", "online", "v", "done"] == 1
    assert served.recorder.deadlines["m", "fast", True] == 1
    assert served.recorder.latencies["m", "fast", "online"] == [pytest.approx(run_ms(2))]


@in_virtual_time
async def test_binary_goes_in_and_comes_out() -> None:
    head = orjson.dumps(
        {
            "id": "mine",
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [2, 1], "parameters": {"binary_data_size": 8}}
            ],
            "parameters": {"binary_data_output": True, "latency_budget_ms": 400},
        }
    )
    data = np.array([1.5, -2.0], "<f4").tobytes()
    async with serving() as served:
        headers = {HEADER_LENGTH: str(len(head))}
        response = await served.client.post("/v2/models/m/infer", content=head + data, headers=headers)
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers[HEADER_LENGTH])
    assert orjson.loads(response.content[:length])["id"] == "mine"
    assert np.frombuffer(response.content[length:], "<f4").tolist() == [3.0, -4.0]


@in_virtual_time
async def test_a_version_in_the_path_pins_the_variant() -> None:
    async with serving() as served:
        response = await served.infer(1.0, path="m/versions/w")
        assert (response.status_code, response.headers["variant"]) == (200, "w")
        assert [call.variant for call in served.replica.calls] == ["w"]


@in_virtual_time
async def test_a_late_answer_on_a_route_that_never_refuses_is_given_and_owned_up_to() -> None:
    async with serving(Replica(hop_ms=2_500.0)) as served:
        response = await served.infer(1.0, budget_ms=600)
        assert (response.status_code, response.headers["deadline-met"]) == (200, "false")
        assert served.recorder.deadlines["m", "flexible", False] == 1


BUDGETS: list[tuple[str, dict[str, str], dict[str, Any], float]] = [
    ("parameter", {"latency-budget-ms": "70"}, {"latency_budget_ms": 50, "timeout": 9_000}, 50.0),
    ("header", {"latency-budget-ms": "70.5"}, {"timeout": 9_000}, 70.5),
    ("timeout in microseconds", {}, {"timeout": 9_000}, 9.0),
    ("timeout 0 is none", {}, {"timeout": 0}, 2_000.0),
    ("default", {}, {}, 2_000.0),
    ("the most", {"latency-budget-ms": "2592000000"}, {}, 2_592_000_000.0),
]
HOLDS: list[tuple[str, dict[str, str], dict[str, Any], float]] = [
    ("default", {}, {}, 10.0),
    ("at once", {"prefer": "respond-async"}, {}, 0.0),
    ("some seconds", {"prefer": "wait=5"}, {}, 5.0),
    ("both", {"prefer": "respond-async, wait=5"}, {}, 5.0),
    ("never too long", {"prefer": "wait=99999999"}, {}, 60.0),
    ("other preferences", {"prefer": "return=minimal; await=3"}, {}, 10.0),
]


async def the_call(served: Served, headers: dict[str, str], parameters: dict[str, Any]) -> InferenceRequest:
    """What the ingress made of a request."""
    calls: list[InferenceRequest] = []

    async def infer(call: InferenceRequest) -> Any:
        calls.append(call)
        raise Unavailable("not in this test")

    served.service.infer = infer  # type: ignore[method-assign]
    body = {**GOOD, "parameters": parameters}
    response = await served.client.post("/v2/models/m/infer", json=body, headers=headers)
    assert response.status_code == 503
    return calls[0]


@pytest.mark.parametrize(
    ("headers", "parameters", "budget_ms"), [c[1:] for c in BUDGETS], ids=[c[0] for c in BUDGETS]
)
def test_the_first_budget_found_holds(
    headers: dict[str, str], parameters: dict[str, Any], budget_ms: float
) -> None:
    @in_virtual_time
    async def play() -> None:
        async with serving() as served:
            assert (await the_call(served, headers, parameters)).budget_ms == budget_ms

    play()


@pytest.mark.parametrize(
    ("headers", "parameters", "hold_s"), [c[1:] for c in HOLDS], ids=[c[0] for c in HOLDS]
)
def test_the_caller_says_how_long_to_hold(
    headers: dict[str, str], parameters: dict[str, Any], hold_s: float
) -> None:
    @in_virtual_time
    async def play() -> None:
        async with serving() as served:
            assert (await the_call(served, headers, parameters)).hold_s == hold_s

    play()


INFER = "/v2/models/m/infer"


def x(**members: Any) -> bytes:
    """A body whose one input is right but for some members."""
    entry = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [3], **members}
    return orjson.dumps({"inputs": [entry]})


def with_(**members: Any) -> bytes:
    return orjson.dumps({**GOOD, **members})


Bad = tuple[str, str, dict[str, str], bytes, int, str]
BAD: list[Bad] = [
    ("GET", "/", {}, b"", 404, "paths begin with /v2"),
    ("GET", "/v1/models", {}, b"", 404, "no such path '/v1/models'"),
    ("GET", "/v2/nothing", {}, b"", 404, "no such path '/v2/nothing'"),
    ("GET", "/v2/models/m/versions", {}, b"", 404, "no such path"),
    ("GET", "/v2/models/m/v/w/x/y", {}, b"", 404, "no such path"),
    ("GET", "/v2/nothing/m/stats", {}, b"", 404, "no such path"),
    ("GET", "/v2/models/z", {}, b"", 404, "no model 'z' here; there is m, o"),
    ("GET", "/v2/models/z/stats", {}, b"", 404, "no model 'z' here"),
    ("GET", "/v2/models/m/versions/z", {}, b"", 404, "model 'm' has no variant 'z'; it has v, w"),
    ("POST", "/v2/models/z/infer", {}, x(), 404, "no model 'z' here"),
    ("POST", "/v2/models//infer", {}, x(), 404, "no such path '/v2/models//infer'"),
    ("POST", "/v2/models/m/versions/z/infer", {}, x(), 404, "no variant 'z'"),
    ("POST", "/v2/models/m/foo/z/infer", {}, x(), 404, "no such path"),
    ("GET", "/v2/requests/m.1234", {}, b"", 404, "no request 'm.1234': unknown, or its result was removed"),
    ("GET", "/v2/requests/zzz", {}, b"", 404, "no request 'zzz' here"),
    ("GET", "/v2/requests/o.1234", {}, b"", 404, "no request 'o.1234' here"),
    ("DELETE", "/v2/requests/m.1234", {}, b"", 404, "no request 'm.1234'"),
    ("GET", "/v2/requests/m.1?wait=long", {}, b"", 400, "query wait='long' must be 0 to 60 seconds"),
    ("GET", "/v2/requests/m.1?wait=-1", {}, b"", 400, "query wait='-1'"),
    ("GET", "/v2/requests/m.1?wait=61", {}, b"", 400, "query wait='61'"),
    ("GET", "/v2/requests/m.1?wait=nan", {}, b"", 400, "query wait='nan'"),
    ("GET", INFER, {}, b"", 405, "GET is not allowed here; use POST"),
    ("POST", "/v2/requests/m.1", {}, b"", 405, "POST is not allowed here; use GET, HEAD, DELETE, OPTIONS"),
    ("DELETE", "/v2/models/m", {}, b"", 405, "DELETE is not allowed here; use GET"),
    ("POST", INFER, {}, b"", 400, "the body is not JSON"),
    ("POST", INFER, {}, b"[1]", 400, "must be a JSON object with a list 'inputs'"),
    ("POST", INFER, {}, x(data=[[1], [2, 3]]), 400, "'data' is ragged"),
    ("POST", INFER, {}, x(datatype="FP99"), 400, 'unknown datatype "FP99"'),
    ("POST", INFER, {}, x(datatype=[]), 400, "unknown datatype a list"),
    (
        "POST",
        INFER,
        {},
        x(shape=[0, 1 << 63], data=[]),
        400,
        "axis 1 of the shape is over the limit of 2147483647",
    ),
    ("POST", INFER, {}, with_(outputs=[{"name": "q"}]), 400, "unknown output 'q'; the model gives y"),
    ("POST", INFER, {HEADER_LENGTH: "ten"}, x(), 400, "'ten' is not a length in bytes"),
    ("POST", INFER, {HEADER_LENGTH: "9" * 5_000}, x(), 400, "is not a length"),
    ("POST", INFER, {HEADER_LENGTH: "999"}, x(), 400, "inference-header-content-length is 999, but the body"),
    ("POST", INFER, {"latency-budget-ms": "soon"}, x(), 400, "Latency-Budget-Ms: 'soon' is not a number"),
    ("POST", INFER, {"latency-budget-ms": "nan"}, x(), 400, "is not a number"),
    ("POST", INFER, {"latency-budget-ms": "0"}, x(), 400, "out of range; above 0 and at most 30 days"),
    ("POST", INFER, {"latency-budget-ms": "-5"}, x(), 400, "out of range"),
    ("POST", INFER, {"latency-budget-ms": "1e30"}, x(), 400, "out of range"),
    ("POST", INFER, {}, with_(parameters={"latency_budget_ms": "50ms"}), 400, '"50ms" is not a number'),
    ("POST", INFER, {}, with_(parameters={"latency_budget_ms": True}), 400, "true is not a number"),
    ("POST", INFER, {}, with_(parameters={"latency_budget_ms": None}), 400, "null is not a number"),
    ("POST", INFER, {}, with_(parameters={"timeout": -1}), 400, "timeout (microseconds): -1 is out of range"),
    ("POST", INFER, {"idempotency-key": "k" * 201}, x(), 400, "Idempotency-Key has 201 characters, 1 to 200"),
    ("POST", INFER, {"idempotency-key": ""}, x(), 400, "Idempotency-Key has 0 characters"),
    (
        "POST",
        INFER,
        {"content-encoding": "br"},
        x(),
        415,
        "Content-Encoding 'br' is not supported; send gzip",
    ),
    ("POST", INFER, {"content-encoding": "gzip, gzip"}, x(), 415, "Content-Encoding 'gzip, gzip' is not"),
    ("POST", INFER, {"content-encoding": "gzip"}, x(), 400, "the body is not gzip data"),
    ("POST", INFER, {"content-encoding": "deflate"}, x(), 400, "the body is not deflate data"),
    (
        "POST",
        INFER,
        {"content-encoding": "gzip"},
        gzip.compress(x(), mtime=0)[:-4],
        400,
        "gzip body is cut off",
    ),
    (
        "POST",
        INFER,
        {"content-encoding": "gzip"},
        gzip.compress(bytes(1 << 20), mtime=0),
        413,
        "the gzip body holds more",
    ),
    (
        "POST",
        INFER,
        {f"x-{n}": "y" for n in range(101)},
        x(),
        431,
        "the request has more headers than are read",
    ),
    ("POST", INFER, {"x-long": "y" * 17_000}, x(), 431, "100 headers and 16384 bytes of values in all"),
    ("GET", "/v2/" + "x" * 1_000, {}, b"", 414, "the path has 1004 characters, 1000 are allowed"),
    ("GET", "/v2/requests/m.1?binary=1", {}, b"", 400, "query binary='1' must be true or false"),
    ("GET", "/v2/requests/m.1?outputs=y", {}, b"", 400, "query 'outputs' is not known here; there is output"),
    ("GET", "/v2/requests/m.1?" + "output=y&" * 300, {}, b"", 400, "output is given more than 256 times"),
    ("POST", INFER, {}, with_(parameters={"a": [1]}), 400, 'parameter "a" is a list; send a string'),
    ("POST", INFER, {}, x(data=[True]), 400, "'data' does not fit datatype FP32"),
    (
        "POST",
        INFER,
        {"content-length": "70000"},
        x(),
        413,
        "the body has 70000 bytes, the policy's limits.body",
    ),
    ("POST", INFER, {"content-length": "70000"}, b"x" * 70_000, 413, "limits.body is 65536"),
    ("POST", INFER, {}, x(shape=[17, 1], data=[1] * 17), 413, "17 rows in one request; the policy's limits"),
    ("POST", INFER, {}, orjson.dumps({"inputs": []}), 422, "input 'x' is missing; the model takes 'x' FP32"),
    ("POST", INFER, {}, x(name="z"), 422, "input 'x' is missing"),
    ("POST", INFER, {}, x(datatype="INT32"), 422, "input 'x': the model takes FP32, got INT32"),
    ("POST", INFER, {}, x(shape=[1]), 422, "the model takes shape [-1, 1] (-1 is any size), got [1]"),
    ("POST", INFER, {}, x(shape=[1, 2], data=[1, 2]), 422, "got [1, 2]"),
    ("POST", INFER, {}, x(shape=[0, 1], data=[]), 422, "at least one tensor of at least one row"),
    ("POST", "/v2/models/o/infer", {"latency-budget-ms": "60000"}, x(), 422, "model 'o' has no batch side"),
    ("POST", INFER, {"latency-budget-ms": "1"}, x(), 429, "the budget is 1 ms"),
]


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status", "said"), BAD, ids=[f"{c[4]}-{c[5][:40]}" for c in BAD]
)
def test_a_bad_request_gets_its_status_and_one_clear_sentence(
    method: str, path: str, headers: dict[str, str], content: bytes, status: int, said: str
) -> None:
    @in_virtual_time
    async def play() -> None:
        async with serving() as served:
            response = await served.client.request(method, path, headers=headers, content=content)
            assert said in the_problem(response, status)
            assert served.replica.calls == []
            assert (await served.queue.stats()).jobs == 0

    play()


@in_virtual_time
async def test_the_methods_that_are_allowed_are_told() -> None:
    async with serving() as served:
        response = await served.client.put("/v2/requests/m.1")
        assert response.headers["allow"] == "GET, HEAD, DELETE, OPTIONS"


@in_virtual_time
async def test_a_body_without_a_length_is_refused_when_it_grows_over_the_limit() -> None:
    async def chunks() -> Any:
        for _ in range(100):
            yield b"x" * 1_000

    async with serving() as served:
        response = await served.client.post(INFER, content=chunks())
        assert "over the policy's limits.body of 65536 bytes" in the_problem(response, 413)


@in_virtual_time
async def test_a_body_in_pieces_is_put_together() -> None:
    async def chunks() -> Any:
        for byte in x():
            yield bytes([byte])

    async with serving() as served:
        response = await served.client.post(INFER, content=chunks(), headers={"latency-budget-ms": "400"})
        assert response.json()["outputs"][0]["data"] == [6.0]


@in_virtual_time
async def test_a_refusal_tells_when_to_come_back_and_then_takes_the_request() -> None:
    async with serving() as served:
        running = [post(served, *[float(n)] * 8) for n in range(2)]
        await settled()
        refused = await served.infer(1.0, budget_ms=40)
        the_problem(refused, 429)
        assert refused.json()["kind"] == "miss"
        assert refused.headers["retry-after"] == "1"
        await asyncio.sleep(int(refused.headers["retry-after-ms"]) / 1_000.0)
        assert (await served.infer(1.0, budget_ms=40)).status_code == 200
        await asyncio.gather(*running)
        assert served.recorder.requests["m", "fast", "none", "", "refused"] == 1


@in_virtual_time
async def test_a_budget_that_no_wait_can_help_gets_no_time_to_come_back() -> None:
    async with serving() as served:
        response = await served.infer(1.0, budget_ms=5)
        assert "retry-after" not in response.headers
        assert response.status_code == 429


@in_virtual_time
async def test_a_full_heap_is_429_whoever_notices_it_first() -> None:
    async with serving() as served:
        tasks = [post(served, *[1.0] * 8, budget_ms=20_000) for _ in range(7)]
        responses = await asyncio.gather(*tasks)
        full = [r for r in responses if r.status_code == 429]
        assert len(full) == 1
        assert full[0].json()["kind"] == "full"


@in_virtual_time
async def test_a_replica_that_fails_twice_is_503_with_its_reason_in_one_line() -> None:
    fault = ValueError("Traceback (most recent call last)\n  File z.py\nValueError: bad weights")
    async with serving(Replica(deque([fault, fault]))) as served:
        response = await served.infer(1.0)
        detail = the_problem(response, 503)
        assert detail == "variant 'v' could not run the batch: ValueError: bad weights"
        assert response.headers["retry-after"] == "1"
        assert served.recorder.requests["m", "fast", "online", "v", "failed"] == 1
        assert served.recorder.deadlines["m", "fast", False] == 1


@in_virtual_time
async def test_a_request_that_became_hopeless_while_it_waited_is_504() -> None:
    async with serving() as served:
        served.replica.hop_ms = 1_000.0  # far more than was measured
        tasks = [post(served, *[1.0] * 8, budget_ms=300) for _ in range(2)]
        await settled()
        response = await served.infer(1.0, budget_ms=100)
        assert "dropped before it ran: its deadline was" in the_problem(response, 504)
        assert served.recorder.requests["m", "fast", "online", "v", "expired"] == 1
        await asyncio.gather(*tasks)


@in_virtual_time
async def test_an_internal_error_says_nothing_of_its_inside(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as served:

        async def infer(call: InferenceRequest) -> Any:
            raise ZeroDivisionError("secret detail")

        served.service.infer = infer  # type: ignore[method-assign]
        response = await served.infer(1.0)
        assert the_problem(response, 500) == "an internal error; the router's log has it"
        assert "secret" not in response.text


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2", {"name": "hybrid-router", "version": "1.2.3"}),
        ("/v2/", {"name": "hybrid-router"}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/m/ready", {"name": "m", "ready": True}),
        ("/v2/models/m/versions/w/ready", {"ready": True}),
        ("/v2/models/m", {"name": "m", "versions": ["v", "w"], "platform": "hybrid-router"}),
        ("/v2/models/m/versions/w", {"versions": ["w"]}),
        ("/v2/models/m", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}]}),
        ("/v2/models/m/stats", {"name": "m"}),
    ],
)
def test_the_server_and_its_models_describe_themselves(path: str, expected: dict[str, Any]) -> None:
    @in_virtual_time
    async def play() -> None:
        async with serving() as served:
            response = await served.client.get(path)
            assert response.status_code == 200
            assert response.json() | expected == response.json()

    play()


@in_virtual_time
async def test_every_model_is_listed_and_its_load_is_shown() -> None:
    async with serving() as served:
        models = (await served.client.get("/v2/models")).json()["models"]
        assert [model["name"] for model in models] == ["m", "o"]
        watching = asyncio.create_task(served.service.queued.watch())
        await served.infer(2.0, budget_ms=LONG, headers={"prefer": "respond-async"})
        await asyncio.sleep(1.0)
        stats = (await served.client.get("/v2/models/m/stats")).json()
        assert stats["queue"]["waiting_jobs"] == 1
        assert stats["online"]["predicted_ms"].keys() == {"v", "w"}
        assert served.recorder.queues["m"].waiting_rows == 1
        served.queue.stats = down  # type: ignore[method-assign]
        await asyncio.sleep(1.0)
        assert "queue" not in (await served.client.get("/v2/models/m/stats")).json()
        watching.cancel()


@in_virtual_time
async def test_a_router_that_is_not_ready_says_so_with_503() -> None:
    async with serving() as served:
        served.ready[0] = False
        for path in ("/v2/health/ready", "/v2/models/m/ready"):
            response = await served.client.get(path)
            assert (response.status_code, response.json()["ready"]) == (503, False)
        assert (await served.client.get("/v2/health/live")).status_code == 200


Sent = list[MutableMapping[str, Any]]


async def raw(served: Served, scope: dict[str, Any], *messages: dict[str, Any]) -> Sent:
    """Drive the application by ASGI messages."""
    sent, left = Sent(), deque(messages)

    async def receive() -> MutableMapping[str, Any]:
        return left.popleft()

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await served.ingress(scope, receive, send)
    return sent


@in_virtual_time
async def test_nobody_is_answered_when_the_connection_ends_before_the_body() -> None:
    scope = {"type": "http", "method": "POST", "path": INFER, "headers": [], "query_string": b""}
    async with serving() as served:
        part = {"type": "http.request", "body": b"{", "more_body": True}
        assert await raw(served, scope, part, {"type": "http.disconnect"}) == []
        assert await raw(served, scope, {"type": "http.disconnect"}) == []


@in_virtual_time
async def test_the_lifespan_of_the_application_is_acknowledged() -> None:
    async with serving() as served:
        messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
        sent = await raw(served, {"type": "lifespan"}, *messages)
        assert [m["type"] for m in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert await raw(served, {"type": "websocket"}) == []


@in_virtual_time
async def test_a_length_that_no_machine_has_is_refused_before_anything_is_read() -> None:
    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError("the body was read")

    with pytest.raises(Exception, match=r"limits\.body is 10"):
        await BodyReader().read(receive, {b"content-length": b"9" * 5_000}, 10)


@in_virtual_time
async def test_rows_that_make_the_model_fail_are_422_for_their_caller_only() -> None:
    async with serving(Replica(bad={2.0}, search_ms=1.0)) as served:
        replies = await asyncio.gather(*(served.infer(value) for value in (1.0, 2.0, 3.0)))
        bad = replies.pop(1)
        assert [reply.status_code for reply in replies] == [200, 200]
        assert bad.status_code == 422
        assert bad.headers["content-type"] == "application/problem+json"
        assert bad.json()["detail"] == "the model fails on this request: ValueError: a bad value"
        assert served.recorder.requests["m", "fast", "online", "v", "invalid"] == 1
        assert served.recorder.deadlines["m", "fast", False] == 0
