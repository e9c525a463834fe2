"""The replay client against a server in the same loop: open loop, counting, connections, bodies."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
import pytest

from optimizers.tensors import TensorSpec
from router.bench import bodies, compare
from router.bench.http_pool import ExchangeError, HttpPool
from router.bench.run import Replayed, replay
from router.bench.tally import RequestRecord, tallied
from router.bulk.errors import InputError
from router.ingress.codec import protocol
from router.sdk.codec import ModelInfo
from router.simulate import workload
from router.simulate.result import SimulationResult
from router.simulate.workload import Request, Share

MODEL = ModelInfo("m", ("v",), "", (TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 1)),))
TEXT = ModelInfo("t", ("v",), "", (TensorSpec("text", "BYTES", (-1,)),), ())
OK = {"Route": "fast", "Variant": "v", "Predicted_Ms": "5000.0"}


@dataclass
class Seen:
    """One request as the fake server read it."""

    line: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[Seen], Awaitable[bytes | None]]


@dataclass
class Fake:
    url: str
    connections: int = 0
    seen: list[Seen] = field(default_factory=list)


def told(status: int, body: bytes = b"{}", **headers: str) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join([f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *lines])
    return head.encode() + b"\r\n\r\n" + body


def ok() -> bytes:
    return told(200, b"{}", **OK)


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[Fake]:
    """``answer`` gives the bytes of each answer; None closes the connection instead."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fake.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                line, *rest = head.strip().split("\r\n")
                headers = {name.lower(): value for name, value in (text.split(": ", 1) for text in rest)}
                request = Seen(line, headers, await reader.readexactly(int(headers["content-length"])))
                fake.seen.append(request)
                data = await answer(request)
                if data is None:
                    return
                writer.write(data)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    fake = Fake("")
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        server.close()


async def always(_: Seen) -> bytes:
    return ok()


async def played(fake: Fake, requests: Sequence[Request]) -> Replayed:
    pool = HttpPool(fake.url)
    try:
        ready = bodies.prepare(requests, {"m": MODEL}, None, 1)
        return await replay(pool, requests, ready, drops={("m", "v"): 0.25})
    finally:
        await pool.close()


async def test_arrivals_do_not_wait_for_answers_and_latency_counts_from_the_intended_time() -> None:
    third = asyncio.Event()

    async def held(request: Seen) -> bytes:
        if len(fake.seen) == 3:
            third.set()
        await third.wait()  # a closed loop would never send the third
        return ok()

    async with serving(held) as fake:
        done = await played(fake, [Request(at_ms, "m", 60_000.0, 1) for at_ms in (0.0, 20.0, 40.0)])
    times = sorted(done.result.routes["fast"].latencies_ms)
    assert done.result.routes["fast"].outcomes == {"met": 3}
    assert times[2] >= 40.0 and times[1] >= 20.0


async def test_outcomes_variants_quality_and_bounds_are_counted_as_the_simulator_counts_them() -> None:
    replies = {
        100.0: told(429, b"{}"),
        101.0: told(504, b"{}"),
        102.0: told(500, b"broken"),
        103.0: ok(),
        104.0: told(200, Route="fast", Variant="v", Predicted_Ms="0.0001"),
        0.001: ok(),
    }

    async def by_budget(request: Seen) -> bytes:
        return replies[float(request.headers["latency-budget-ms"])]

    async with serving(by_budget) as fake:
        done = await played(fake, [Request(0.0, "m", budget_ms, 2) for budget_ms in replies])
    tally = done.result.routes["fast"]
    outcomes = {"met": 2, "late": 1, "refused": 1, "expired": 1, "failed": 1}
    assert tally.outcomes == outcomes
    assert tally.variants == {"v": 3} and tally.quality_drop == pytest.approx(0.75)
    assert (tally.within_bound, tally.predicted) == (2, 4)
    assert len(tally.refusals_ms) == 1
    assert done.failures == {"status 500: broken": 1}
    assert done.result.seconds > 0


async def test_an_answer_that_comes_later_is_fetched_where_the_server_says() -> None:
    async def later(request: Seen) -> bytes:
        if request.line.startswith("POST"):
            return told(202, Location="/v2/requests/m.7", Predicted_Ms="90000", Route="bulk")
        return told(202) if len(fake.seen) == 2 else told(200, Variant="v", Route="bulk")

    async with serving(later) as fake:
        done = await played(fake, [Request(0.0, "m", 60_000.0, 1)])
    assert [seen.line.split("?")[0] for seen in fake.seen[1:]] == ["GET /v2/requests/m.7"] * 2
    tally = done.result.routes["bulk"]
    assert tally.outcomes == {"met": 1} and tally.within_bound == 1


async def test_a_request_carries_budget_tenant_and_a_body_that_the_protocol_reads() -> None:
    async with serving(always) as fake:
        await played(fake, [Request(0.0, "m", 50.0, 4, "big")])
    (seen,) = fake.seen
    assert seen.line == "POST /v2/models/m/infer HTTP/1.1"
    assert seen.headers["latency-budget-ms"] == "50" and seen.headers["tenant"] == "big"
    read = protocol.decode(seen.body, int(seen.headers["inference-header-content-length"]))
    assert read.inputs["x"].shape == (4, 3) and read.binary


async def test_headers_parameters_and_a_pinned_variant_reach_the_server() -> None:
    gold = {b"x-tier": b"gold"}
    requests = [
        Request(0.0, "m", 50.0, 1, variant="v", headers=gold, parameters={"explain": value})
        for value in (True, 1, "true")
    ]
    async with serving(always) as fake:
        await played(fake, requests)
    assert {seen.line for seen in fake.seen} == {"POST /v2/models/m/versions/v/infer HTTP/1.1"}
    assert [seen.headers["x-tier"] for seen in fake.seen] == ["gold"] * 3
    read = [
        protocol.decode(seen.body, int(seen.headers["inference-header-content-length"])).parameters["explain"]
        for seen in fake.seen
    ]
    assert sorted(map(repr, read)) == ["'true'", "1", "True"]


async def test_refusals_are_told_by_reason_and_results_by_tenant() -> None:
    replies = {
        "quota": told(429, b'{"kind": "quota"}'),
        "miss": told(429, b'{"kind": "miss"}'),
        "full": told(429, b'{"kind": "full"}'),
        "unserved": told(422, b'{"kind": "unserved"}'),
        "forbidden": told(403),
        "size": told(413),
        "answered": ok(),
        "broken": told(422, b'{"kind": 7}'),
    }

    async def by_tenant(request: Seen) -> bytes:
        return replies[request.headers["tenant"]]

    async with serving(by_tenant) as fake:
        done = await played(fake, [Request(0.0, "m", 5_000.0, 1, tenant) for tenant in replies])
    found = done.result.to_json()
    assert found["refused_for"] == dict.fromkeys(
        ("quota", "miss", "full", "unserved", "forbidden", "size"), 1
    )
    assert found["tenants"]["broken"]["failed"] == found["tenants"]["answered"]["met"] == 1
    assert found["routes"]["(none)"]["refused_for"] == dict.fromkeys(("forbidden", "quota", "size"), 1)
    assert found["routes"]["fast"]["refused_for"] == dict.fromkeys(("full", "miss", "unserved"), 1)


async def test_a_variant_can_be_pinned_and_the_url_may_have_a_path() -> None:
    async with serving(always) as fake:
        pool = HttpPool(f"{fake.url}/inner/")
        requests = [Request(0.0, "m", 50.0, 1)]
        await replay(pool, requests, bodies.prepare(requests, {"m": MODEL}, None, 1), variant="w")
        await pool.close()
    assert fake.seen[0].line == "POST /inner/v2/models/m/versions/w/infer HTTP/1.1"


async def test_connections_are_kept_and_never_more_than_allowed() -> None:
    async with serving(always) as fake:
        pool = HttpPool(fake.url, max_connections=3)
        for _ in range(3):
            await asyncio.gather(*(pool.exchange("GET", "/") for _ in range(10)))
        await pool.close()
    assert len(fake.seen) == 30 and fake.connections == 3


async def test_a_kept_connection_that_the_server_dropped_is_replaced_once() -> None:
    async def second_time_gone(request: Seen) -> bytes | None:
        return None if len(fake.seen) == 2 else ok()

    async with serving(second_time_gone) as fake:
        pool = HttpPool(fake.url, max_connections=1)
        assert (await pool.exchange("GET", "/")).status == 200
        assert (await pool.exchange("GET", "/")).status == 200
        await pool.close()
    assert len(fake.seen) == 3 and fake.connections == 2


async def test_a_new_connection_that_is_dropped_is_an_error_and_not_tried_for_ever() -> None:
    async def gone(request: Seen) -> None:
        return None

    async with serving(gone) as fake:
        pool = HttpPool(fake.url)
        with pytest.raises(ExchangeError, match="closed"):
            await pool.exchange("GET", "/")
        await pool.close()
    assert len(fake.seen) == 1


async def test_no_answer_in_time_is_an_error_and_the_connection_is_not_used_again() -> None:
    never = asyncio.Event()

    async def first_never(request: Seen) -> bytes:
        if len(fake.seen) == 1:
            await never.wait()
        return ok()

    async with serving(first_never) as fake:
        pool = HttpPool(fake.url, max_connections=1)
        with pytest.raises(ExchangeError, match="no answer within"):
            await pool.exchange("GET", "/", timeout_s=0.05)
        assert (await pool.exchange("GET", "/")).status == 200
        never.set()
        await pool.close()
    assert fake.connections == 2


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"SSH-2.0-x\r\n\r\n", "begins with"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab", "more bytes"),
        (b"HTTP/1.1 2x0 OK\r\nContent-Length: 0\r\n\r\n", "not HTTP"),
    ],
)
async def test_what_is_not_a_whole_answer_is_an_error(data: bytes, says: str) -> None:
    async def answer(request: Seen) -> bytes:
        return data

    async with serving(answer) as fake:
        pool = HttpPool(fake.url)
        with pytest.raises(ExchangeError, match=says):
            await pool.exchange("GET", "/")
        await pool.close()


async def test_an_answer_in_pieces_after_a_continue_is_put_together() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        whole = b"HTTP/1.1 100 Continue\r\n\r\n" + told(200, b"abcdef")
        for at in range(0, len(whole), 7):
            writer.write(whole[at : at + 7])
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    pool = HttpPool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    reply = await pool.exchange("GET", "/")
    assert (reply.status, reply.body) == (200, b"abcdef") and reply.at_s >= reply.sent_s
    await pool.close()
    server.close()


async def test_a_server_that_is_not_there_is_an_error_that_names_it() -> None:
    async with serving(always) as fake:
        pass
    pool = HttpPool(fake.url)
    with pytest.raises(ExchangeError, match="no connection"):
        await pool.exchange("GET", "/")


def test_a_sender_whose_lateness_shows_in_the_latencies_says_so() -> None:
    done = Replayed(SimulationResult(1))
    done.result.route("r").latencies_ms.extend([10.0] * 100)
    done.lateness_ms.extend([0.2] * 100)
    assert not done.sender_was_bottleneck
    done.lateness_ms.extend([30.0] * 10)
    assert done.lateness_ms_p99 == 30.0
    late = done.sender_was_bottleneck
    assert late


def test_a_refusal_counts_for_the_route_of_the_nearest_budget_of_its_model() -> None:
    def record(model: str, budget_ms: float, outcome: str, route: str = "") -> RequestRecord:
        return RequestRecord(Request(0.0, model, budget_ms, 1), outcome, 1.0, route)

    def of(tenant: str, outcome: str, route: str = "") -> RequestRecord:
        return RequestRecord(Request(0.0, "m", 50.0, 1, tenant), outcome, 1.0, route)

    own = [of("a", "answered", "theirs"), of("b", "answered", "fast"), of("a", "refused"), of("c", "refused")]
    assert tallied(own, 7, {}).routes["theirs"].outcomes == {"met": 1, "refused": 1}
    records = [
        record("m", 50.0, "answered", "fast"),
        record("m", 60_000.0, "answered", "bulk"),
        record("m", 50.0, "refused"),
        record("m", 40_000.0, "refused"),
        record("n", 50.0, "refused"),
    ]
    found = tallied(records, 7, {})
    assert {name: tally.outcomes["refused"] for name, tally in found.routes.items()} == {
        "fast": 1,
        "bulk": 1,
        "(none)": 1,
    }


def test_the_same_seed_makes_the_same_bodies_and_another_seed_others() -> None:
    requests = [Request(0.0, "m", 1.0, 1), Request(0.0, "m", 1.0, 5)]

    def content(seed: int) -> list[bytes]:
        ready = bodies.prepare(requests, {"m": MODEL}, None, seed)
        return [ready.of(request, number).content for request in requests for number in range(3)]

    assert content(1) == content(1) != content(2)
    assert len(set(content(1))) == 6


def test_rows_of_a_file_go_out_in_turn_and_a_row_that_does_not_fit_is_named(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.save(tmp_path / "rows.npy", array)
    request = Request(0.0, "m", 1.0, 2)
    ready = bodies.prepare([request], {"m": MODEL}, tmp_path / "rows.npy", 1)
    for number, want in ((0, array[:2]), (1, array[2:]), (4, array[:2])):
        body = ready.of(request, number)
        length = int(re.search(rb"Content-Length: (\d+)", body.head)[1])  # type: ignore[index]
        assert np.array_equal(protocol.decode(body.content, length).inputs["x"], want)
    (tmp_path / "rows.jsonl").write_text("[1, 2, 3]\n[1, 2]\n")
    with pytest.raises(InputError, match="row 1"):
        bodies.prepare([request], {"m": MODEL}, tmp_path / "rows.jsonl", 1)


def test_text_rows_are_made_for_a_model_of_text() -> None:
    request = Request(0.0, "t", 1.0, 3)
    body = bodies.prepare([request], {"t": TEXT}, None, 1).of(request, 0)
    length = int(re.search(rb"Content-Length: (\d+)", body.head)[1])  # type: ignore[index]
    assert all(len(text) > 10 for text in protocol.decode(body.content, length).inputs["text"])


def test_prediction_and_truth_are_compared_in_points_and_shares_of_the_truth() -> None:
    predicted, measured = SimulationResult(7, 10.0), SimulationResult(7, 20.0)
    for result, latency in ((predicted, 90.0), (measured, 100.0)):
        tally = result.route("fast")
        for number in range(10):
            tally.answered(latency, number != 0 or result is measured, "v", 0.0, True)
    found = {d.figure: d for d in compare.differences(predicted.to_json(), measured.to_json())}
    assert found["deadlines met"].error == pytest.approx(-10.0)
    assert found["fast: p50, ms"].error == pytest.approx(-0.1)
    assert found["goodput, 1/s"].error == pytest.approx(0.8)
    for result, outcome in ((predicted, "refused"), (measured, "expired")):
        result.by_tenant = True
        for tally in result.tallies("fast", "acme"):
            tally.ended(outcome, 1.0, "quota")
    errors = {d.figure: d.error for d in compare.differences(predicted.to_json(), measured.to_json())}
    assert errors["tenant acme: refused"] == 100.0 and errors["tenant acme: met"] == 0.0
    shown = compare.table("p.yaml", list(found.values()))
    assert "-10.00 points" in shown and "+80.0%" in shown


def test_a_file_that_is_no_prediction_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"a": {"routes": {}}}')
    with pytest.raises(compare.PredictionError, match=re.escape("p.json: not what")):
        compare.read(path)


def test_a_prediction_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    result = SimulationResult(7, 10.0).to_json()
    path.write_bytes(b"\xef\xbb\xbf" + orjson.dumps({"a": result}))
    assert compare.read(path)["a"]["routes"] == {}
    path.write_bytes("{}".encode("utf-16"))
    with pytest.raises(compare.PredictionError, match="save it as UTF-8"):
        compare.read(path)


def test_the_same_options_ask_for_the_very_same_requests(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time\n" + "\n".join(str(number) for number in range(11)))
    shares = (Share("m", 50.0), Share("m", 5_000.0, 8, 0.5))
    twice = [workload.asked(path, shares, 3, rate=4.0, scale=2.0, seconds=1.0) for _ in range(2)]
    assert twice[0] == twice[1]
    assert [r.at_ms for r in twice[0]] == [125.0 * number for number in range(9)]
    made = workload.asked(None, shares, 3, rate=100.0, seconds=5.0)
    assert 400 < len(made) < 600 and made == workload.asked(None, shares, 3, rate=100.0, seconds=5.0)
