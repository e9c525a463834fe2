"""A bulk run as its caller sees it: order, failed rows apart, and what ends it early."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest

from optimizers.tensors import Array, Tensors, TensorSpec
from router.bulk.errors import BulkError, InputError, LedgerError
from router.bulk.plan import Order
from router.bulk.run import run
from router.bulk.store import Paths
from router.ingress.codec import protocol
from router.sdk.errors import DeadlineExceeded, InvalidRequest, ServerUnavailable, Unauthorized
from tests.unit.bulk.harness import INFO, BulkServer, FaultyDisk, client_of, order_of, submit, table
from tests.unit.sdk.harness import Clock, problem


def saved(tmp_path: Path, rows: int, poison: tuple[int, ...] = ()) -> Path:
    path = tmp_path / "in.npy"
    np.save(path, table(rows, poison))
    return path


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def read(path: Path) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


async def test_every_row_is_answered_in_order_and_nothing_else_is_left(tmp_path: Path) -> None:
    server, order = BulkServer(), order_of(saved(tmp_path, 100), tmp_path / "out.jsonl")
    tally = await submit(server, order)
    rows = read(order.results)
    assert [row["row"] for row in rows] == list(range(100))
    assert rows[42] == {"row": 42, "outputs": {"double": [84, 85], "label": 2}, "variant": "a"}
    assert (tally.rows, tally.failed, tally.total) == (100, 0, 100)
    assert names_in(tmp_path) == {"in.npy", "out.jsonl"}
    assert set(server.taken.values()) == {1}


async def test_only_the_rows_at_fault_fail_and_they_stand_apart_with_their_reason(tmp_path: Path) -> None:
    poison = (0, 3, 4, 25, 39)
    server, order = BulkServer(), order_of(saved(tmp_path, 40, poison), tmp_path / "out.jsonl")
    tally = await submit(server, order)
    failed = read(Paths(order.results).failed)
    assert [row["row"] for row in failed] == list(poison)
    assert "the model choked" in str(failed[0]["reason"])
    assert [row["row"] for row in read(order.results)] == [i for i in range(40) if i not in poison]
    assert tally.failed == len(poison)


async def test_rows_that_the_file_holds_wrongly_fail_without_being_sent(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('[1, 2]\n\nnot json\n{"x": [3, 4]}\n[5]\n[6, "a"]\n{"y": [1, 2]}\n[7, 8]')
    server, order = BulkServer(), order_of(source, tmp_path / "out.jsonl")
    await submit(server, order)
    assert [row["row"] for row in read(order.results)] == [0, 2, 6]
    reasons = {row["row"]: str(row["reason"]) for row in read(Paths(order.results).failed)}
    assert list(reasons) == [1, 3, 4, 5]
    assert "not JSON" in reasons[1]
    assert "takes shape [2]" in reasons[3]
    assert "'x' is missing" in reasons[5]
    assert set(server.taken) == {1, 3, 7}


async def test_memory_is_bounded_by_the_window_and_not_by_the_file(tmp_path: Path) -> None:
    """Nothing is read further than twice the requests in flight ahead of what is written."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"".join(b"[%d, 0]\n" % i for i in range(400)))
    gate, release = asyncio.Event(), asyncio.Event()
    server = BulkServer()

    async def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/v2/requests/m.0"):
            gate.set()
            await release.wait()
        return server(request)

    client = client_of(server)
    client._transport = httpx.MockTransport(handle)
    order = order_of(source, tmp_path / "out.jsonl")
    running = asyncio.create_task(run(client, INFO, order, report=lambda t: None, disk=FaultyDisk()))
    await gate.wait()
    for _ in range(500):
        await asyncio.sleep(0)
    assert len(server.posted) == 2 * order.concurrency
    release.set()
    assert (await running).rows == 400


async def test_an_answer_that_comes_at_once_needs_no_request_to_remember(tmp_path: Path) -> None:
    server, order = BulkServer(), order_of(saved(tmp_path, 20), tmp_path / "out.jsonl")
    server.online = True
    assert (await submit(server, order)).rows == 20
    assert not any(r.url.path.startswith("/v2/requests") for r in server.posted)


async def test_requests_that_expired_in_an_earlier_run_are_asked_anew(tmp_path: Path) -> None:
    expired = problem(504, "expired", state="expired")
    server = BulkServer(lambda number: expired if number < 2 else None)
    order = order_of(saved(tmp_path, 40), tmp_path / "out.jsonl", budget="1s")
    clock = Clock()
    reply = server.__call__

    def slow(request: httpx.Request) -> httpx.Response:
        clock.now += 0.4
        return reply(request)

    client = client_of(server, clock)
    client._transport = httpx.MockTransport(slow)
    with pytest.raises(DeadlineExceeded):
        await run(client, INFO, order, report=lambda t: None, disk=FaultyDisk())
    assert Paths(order.results).ledger.exists()
    tally = await submit(server, dataclasses.replace(order, budget="2h"))
    assert (tally.rows, tally.failed) == (40, 0)
    assert [row["row"] for row in read(order.results)] == list(range(40))


async def test_results_that_the_server_no_longer_keeps_are_computed_again(tmp_path: Path) -> None:
    server, order = BulkServer(), order_of(saved(tmp_path, 40), tmp_path / "out.jsonl")
    server.fate = lambda number: problem(401, "who are you?") if number == 2 else None
    with pytest.raises(Unauthorized):
        await submit(server, order)
    server.fate = lambda number: None
    server.forget_jobs()
    assert (await submit(server, order)).rows == 40
    assert [row["row"] for row in read(order.results)] == list(range(40))


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (problem(401, "no key"), Unauthorized),
        (problem(400, "malformed"), InvalidRequest),
        (problem(422, "no batch side"), InvalidRequest),
        (httpx.ConnectError("refused"), ServerUnavailable),
    ],
)  # fmt: skip
async def test_what_is_wrong_with_all_rows_ends_the_run_and_fails_none(
    tmp_path: Path, reply: httpx.Response | Exception, error: type[Exception]
) -> None:
    server, order = BulkServer(), order_of(saved(tmp_path, 100), tmp_path / "out.jsonl")
    good = client_of(server)
    asked = 0

    def refuse(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        if isinstance(reply, Exception):
            raise reply
        return httpx.Response(reply.status_code, content=reply.content, headers=reply.headers)

    good._transport = httpx.MockTransport(refuse)
    with pytest.raises(error):
        await run(good, INFO, order, report=lambda t: None, disk=FaultyDisk())
    assert asked < 200
    assert Paths(order.results).failed.read_bytes() == b""
    assert (await submit(server, order)).rows == 100  # nothing was lost: it can be run again


async def test_polls_that_are_over_quota_are_waited_out(tmp_path: Path) -> None:
    server, refused = BulkServer(), set[str]()

    def handle(request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path.startswith("/v2/requests/") and path not in refused:
            refused.add(path)
            return problem(429, "over quota", headers={"retry-after": "2"})
        return server(request)

    order = order_of(saved(tmp_path, 40), tmp_path / "out.jsonl")
    client = client_of(server)
    client._transport = httpx.MockTransport(handle)
    tally = await run(client, INFO, order, report=lambda tally: None)
    assert (tally.rows, tally.failed, len(refused)) == (40, 0, 5)
    assert set(server.taken.values()) == {1}


async def test_a_file_of_which_no_row_fits_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"pixels": [1, 2]}\n' * 20)
    server, order = BulkServer(), order_of(source, tmp_path / "out.jsonl")
    with pytest.raises(InputError, match=r"none of the first 8 rows fits the model.*'x' is missing"):
        await submit(server, order)
    assert not server.posted
    source.write_text("[1, 2]\n" * 20)  # mended: nothing stands in the way
    assert (await submit(server, order)).rows == 20


async def test_a_cancelled_run_leaves_its_requests_with_the_server(tmp_path: Path) -> None:
    server, order = BulkServer(), order_of(saved(tmp_path, 100), tmp_path / "out.jsonl")
    held = asyncio.Event()

    async def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/v2/requests/m.3"):
            held.set()
            await asyncio.Event().wait()
        return server(request)

    client = client_of(server)
    client._transport = httpx.MockTransport(handle)
    running = asyncio.create_task(run(client, INFO, order, report=lambda t: None, disk=FaultyDisk()))
    await held.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    taken = dict(server.taken)
    assert taken
    tally = await submit(server, order)
    assert 0 < tally.resumed_at < 100
    assert set(server.taken.values()) == {1}
    assert all(r.method != "DELETE" for r in server.posted)
    assert [row["row"] for row in read(order.results)] == list(range(100))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"variant": "b"}, r"--variant \(it was none\)"),
        ({"rows_per_request": 16}, r"--rows-per-request \(it was 8\)"),
        ({"outputs": ("label",)}, "--output"),
    ],
)
async def test_other_options_than_it_began_with_are_refused(
    tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    server, order = await interrupted(tmp_path)
    with pytest.raises(LedgerError, match=says) as refused:
        await submit(server, dataclasses.replace(order, **changes))  # type: ignore[arg-type]
    assert "--restart" in str(refused.value)
    assert (await submit(server, order)).rows == 40  # the refusal harmed nothing


async def test_a_changed_file_is_refused_until_it_is_begun_anew(tmp_path: Path) -> None:
    server, order = await interrupted(tmp_path)
    np.save(order.source, table(41))
    with pytest.raises(LedgerError, match=r"another FILE .*--restart"):
        await submit(server, order)
    tally = await submit(server, order, restart=True)
    assert (tally.rows, tally.resumed_at) == (41, 0)
    assert len(read(order.results)) == 41


async def interrupted(tmp_path: Path) -> tuple[BulkServer, Order]:
    server, order = BulkServer(), order_of(saved(tmp_path, 40), tmp_path / "out.jsonl")
    server.fate = lambda number: problem(401, "who are you?") if number == 3 else None
    with pytest.raises(Unauthorized):
        await submit(server, order)
    server.forget_jobs()
    server.fate = lambda number: None
    return server, order


async def test_finished_results_are_not_replaced_unasked_and_a_new_run_computes_anew(
    tmp_path: Path,
) -> None:
    server, order = BulkServer(), order_of(saved(tmp_path, 10), tmp_path / "out.jsonl")
    await submit(server, order)
    with pytest.raises(LedgerError, match="exists already; --restart"):
        await submit(server, order)
    await submit(server, order, restart=True)
    assert set(server.taken.values()) == {2}


async def test_two_processes_do_not_write_the_same_results(tmp_path: Path) -> None:
    server, order = await interrupted(tmp_path)
    first = FaultyDisk().open(Paths(order.results).ledger)
    assert first.lock()
    with pytest.raises(LedgerError, match="another process"):
        await submit(server, order)
    first.close()
    assert (await submit(server, order)).rows == 40


async def test_a_damaged_ledger_is_refused_and_a_torn_last_line_is_not(tmp_path: Path) -> None:
    server, order = await interrupted(tmp_path)
    ledger = Paths(order.results).ledger
    content = ledger.read_bytes()
    ledger.write_bytes(content + b'{"rows": 24, "at": 1')
    assert (await submit(server, order)).rows == 40
    order.results.unlink()
    lines = content.splitlines(keepends=True)
    ledger.write_bytes(lines[0] + b"\0\0\0\n" + b"".join(lines[1:]))
    with pytest.raises(LedgerError, match="damaged"):
        await submit(server, order)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"variant": "c"}, "no variant 'c'; it has a, b"),
        ({"outputs": ("triple",)}, "no output 'triple'; it has double, label"),
        ({"results": "out.npy"}, "pick it with --output, of double, label"),
        ({"results": "out.xlsx"}, "one of .jsonl"),
        ({"results": "in.npy", "outputs": ("label",)}, "both"),
        ({"source": "in.txt"}, "one of .jsonl"),
    ],
)
async def test_what_cannot_be_done_is_said_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    saved(tmp_path, 10)
    (tmp_path / "in.txt").write_text("1")
    options = dict(changes)
    source = tmp_path / str(options.pop("source", "in.npy"))
    results = tmp_path / str(options.pop("results", "out.jsonl"))
    before = names_in(tmp_path)
    server = BulkServer()
    with pytest.raises(InputError, match=says):
        await submit(server, order_of(source, results, **options))
    assert names_in(tmp_path) == before
    assert not server.posted


async def test_outputs_that_change_their_shape_end_a_table_with_the_way_out(tmp_path: Path) -> None:
    server = BulkServer()
    real = server._run

    def widen(x: Array, decoded: protocol.DecodedBody) -> httpx.Response:
        if x[0, 0] < 16:
            return real(x, decoded)
        outputs: Tensors = {"double": np.zeros((len(x), 3), np.float32), "label": np.zeros(len(x), np.int64)}
        specs = (TensorSpec("double", "FP32", (-1, 3)), TensorSpec("label", "INT64", (-1,)))
        body, head = protocol.encode(outputs, specs, wanted=None, binary=True, envelope={})
        kind = {"content-type": "application/octet-stream"}
        return httpx.Response(200, content=body, headers={protocol.HEADER_LENGTH: str(head), **kind})

    server._run = widen  # type: ignore[method-assign]
    order = order_of(saved(tmp_path, 40), tmp_path / "out.csv")
    with pytest.raises(BulkError, match=r"row 16 .* write such results to .jsonl"):
        await submit(server, order)
    assert len(order.results.read_text().splitlines()) == 1 + 16
