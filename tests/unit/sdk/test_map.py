"""``map``: packed, bounded, in order, in both clients."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any, cast

import httpx
import numpy as np
import pytest

from optimizers.tensors import TensorSpec
from router.ingress.codec import protocol
from router.sdk.codec import Result
from router.sdk.effects import Options, Send
from router.sdk.errors import HybridRouterError, InvalidRequest, JobCancelled, JobFailed
from router.sdk.map import MapPlan
from router.sdk.window import Finish, Pull, StartWork
from tests.unit.sdk.harness import Bench, FakeServer, async_client_of, client_of, pending, problem


def images(count: int) -> Iterator[Any]:
    for i in range(count):
        yield np.full((2, 2), float(i % 10))


def rows_of(request: httpx.Request) -> int:
    decoded = protocol.decode(request.content, int(request.headers[protocol.HEADER_LENGTH]))
    return int(decoded.inputs["image"].shape[0])


@pytest.fixture(params=["sync", "async"])
def mapped(request: pytest.FixtureRequest) -> Any:
    """Run ``map`` to its end through either client and give what it gave, as one list."""

    def run(server: FakeServer, items: Any, **options: Any) -> list[Any]:
        if request.param == "sync":
            with client_of(server) as client:
                return list(client.map("digits", items, **options))

        async def gather() -> list[Any]:
            async with async_client_of(server) as client:
                return [r async for r in client.map("digits", items, **options)]

        return asyncio.run(gather())

    return run


@pytest.mark.parametrize("queue", [True, False], ids=["queued", "at once"])
@pytest.mark.parametrize(("count", "packs"), [(0, []), (1, [1]), (8, [4, 4]), (10, [2, 4, 4])])
def test_items_are_packed_and_answered_in_order(
    mapped: Any, queue: bool, count: int, packs: list[int]
) -> None:
    server = FakeServer(queue=queue)
    results = mapped(server, images(count), budget="1h", rows_per_request=4, concurrency=3)
    assert [int(r.output.argmax()) for r in results] == [i % 10 for i in range(count)]
    assert all(r.output.shape == (10,) for r in results)
    assert sorted(rows_of(r) for r in server.posts) == packs
    assert all(r.headers["prefer"] == "respond-async" for r in server.posts)


def test_the_chosen_outputs_are_asked_for_at_once_and_when_they_are_done(mapped: Any) -> None:
    server = FakeServer(queue=True)
    results = mapped(server, images(3), budget="1h", outputs=["scores"])
    assert [list(r.outputs) for r in results] == [["scores"]] * 3
    (post,) = server.posts
    decoded = protocol.decode(post.content, int(post.headers[protocol.HEADER_LENGTH]))
    assert set(decoded.outputs) == {"scores"}
    assert {r.url.params.get("output") for r in server.polls} == {"scores"}


def test_an_endless_generator_is_pulled_no_further_than_the_window() -> None:
    pulled = 0

    def endless() -> Iterator[Any]:
        nonlocal pulled
        while True:
            pulled += 1
            yield np.zeros((2, 2))

    server = FakeServer(queue=True)
    with client_of(server) as client:
        results = client.map("digits", endless(), budget="1h", rows_per_request=4, concurrency=2)
        for _ in range(41):
            next(results)
        assert pulled <= 41 + 3 + 2 * 4
        results.close()  # type: ignore[attr-defined]


def test_a_failed_request_raises_at_its_first_item(mapped: Any) -> None:
    seen: list[int] = []
    server = FakeServer(lambda _: server._infer(server.posts[-1]), problem(500, "the model broke"))
    with pytest.raises(JobFailed, match="the model broke"):
        mapped(
            server,
            images(6),
            budget="1h",
            rows_per_request=2,
            concurrency=1,
            progress=lambda done, total: seen.append(done),
        )
    assert seen == [1, 2]


def test_errors_come_in_place_where_asked_for(mapped: Any) -> None:
    server = FakeServer(lambda _: server._infer(server.posts[-1]), problem(500, "the model broke"))
    items = list(images(6))
    items[4] = np.zeros((3, 3))
    results = mapped(server, items, budget="1h", rows_per_request=2, concurrency=1, on_error="return")
    kinds = [type(r) for r in results]
    assert kinds == [Result, Result, JobFailed, JobFailed, InvalidRequest, Result]
    assert int(results[5].output.argmax()) == 5


@pytest.mark.parametrize("queue", [True, False], ids=["queued", "at once"])
def test_an_item_that_the_server_refuses_costs_no_other_its_answer(mapped: Any, queue: bool) -> None:
    server = FakeServer(queue=queue)
    refused: set[str] = set()

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path in refused:
            return problem(422, "the model choked", state="failed")
        reply = server(request)
        if request.method == "POST":
            length = int(request.headers[protocol.HEADER_LENGTH])
            if (protocol.decode(request.content, length).inputs["image"] == 7).any():
                if not queue:
                    return problem(422, "the model choked")
                refused.add(f"/v2/requests/{reply.json()['id']}")
        return reply

    results = mapped(handle, images(16), rows_per_request=8, on_error="return")
    assert [type(r) for r in results] == [
        *[Result] * 7,
        JobFailed if queue else InvalidRequest,
        *[Result] * 8,
    ]
    assert [int(r.output.argmax()) for n, r in enumerate(results) if n != 7] == [
        n % 10 for n in range(16) if n != 7
    ]
    with pytest.raises((JobFailed, InvalidRequest), match="choked"):
        mapped(handle, images(16), rows_per_request=8)


def test_an_item_that_is_no_input_raises_in_its_place(mapped: Any) -> None:
    seen: list[int] = []
    with pytest.raises(InvalidRequest, match="each item takes shape"):
        mapped(
            FakeServer(),
            [np.zeros((2, 2)), np.zeros(3), np.zeros((2, 2))],
            progress=lambda done, total: seen.append(done),
        )
    assert seen == [1]


def test_items_of_other_shapes_go_in_requests_of_their_own(mapped: Any) -> None:
    server = FakeServer(inputs=(TensorSpec("image", "FP32", (-1, -1, -1)),))
    items = [np.full((2, 2), 1.0), np.full((2, 2), 2.0), np.full((3, 1), 3.0), np.full((2, 2), 4.0)]
    results = mapped(server, items, budget="1h")
    assert [int(r.output.argmax()) for r in results] == [1, 2, 3, 4]
    assert sorted(rows_of(r) for r in server.posts) == [1, 1, 2]


def test_all_requests_share_the_one_budget() -> None:
    server = FakeServer(*[problem(429, headers={"retry-after": "60"})], queue=True)
    with client_of(server) as client:
        list(client.map("digits", images(4), budget="10min", rows_per_request=1, concurrency=1))
    budgets = [float(r.headers["latency-budget-ms"]) for r in server.posts]
    assert budgets[0] == 600_000
    assert set(budgets[1:]) == {540_000}


def test_a_failing_source_ends_the_map_with_its_own_error(mapped: Any) -> None:
    def source() -> Iterator[Any]:
        yield np.zeros((2, 2))
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        mapped(FakeServer(), source())


def test_polls_that_are_over_quota_are_waited_out(mapped: Any) -> None:
    server = FakeServer(queue=True)
    refused: set[str] = set()

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/v2/requests/") and request.url.path not in refused:
            refused.add(request.url.path)
            return problem(429, "over quota", headers={"retry-after": "2"})
        return server(request)

    results = mapped(handle, images(6), rows_per_request=2)
    assert [int(r.output.argmax()) for r in results] == list(range(6))
    assert len(refused) == 3


def test_progress_is_told_how_many_of_how_many(mapped: Any) -> None:
    told: list[tuple[int, int | None]] = []
    mapped(FakeServer(), list(images(3)), progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    told.clear()
    mapped(FakeServer(), images(1), progress=lambda done, total: told.append((done, total)))
    assert told == [(1, None)]


def test_a_bar_goes_to_standard_error_only(mapped: Any, capsys: pytest.CaptureFixture[str]) -> None:
    mapped(FakeServer(), list(images(3)), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "3/3" in err


@pytest.mark.parametrize("options", [{"rows_per_request": 0}, {"concurrency": 0}, {"on_error": "ignore"}])
def test_options_that_make_no_sense_are_refused_at_the_call(options: dict[str, Any]) -> None:
    with client_of(FakeServer()) as client, pytest.raises(ValueError, match=r"1 or more|'raise' or 'return'"):
        client.map("digits", [], **options)


class PollsHang(FakeServer):
    """Its requests stay pending but for the first of the map, r0; a poll of one is held until the request is
    cancelled."""

    def __init__(self) -> None:
        super().__init__(queue=True)
        self.first_taken = threading.Event()
        self.ended = {f"r{i}": threading.Event() for i in range(1, 9)}
        self.polled = threading.Semaphore(0)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        id_ = request.url.path.rpartition("/")[2]
        if request.method == "GET" and id_ in self.ended:
            self.polled.release()
            assert self.ended[id_].wait(10)
            return problem(410, "cancelled")
        if request.method == "DELETE" and id_ in self.ended:
            self.ended[id_].set()
        if request.method != "POST":
            return super().__call__(request)
        # Each request has a thread of its own, and any of them may be the first to get here.
        decoded = protocol.decode(request.content, int(request.headers[protocol.HEADER_LENGTH]))
        if decoded.inputs["image"].min() > 0:
            assert self.first_taken.wait(10)
        reply = super().__call__(request)
        self.first_taken.set()
        return reply


def test_leaving_the_loop_cancels_what_is_in_flight() -> None:
    server = PollsHang()
    with client_of(server) as client:
        results = client.map("digits", images(6), budget="1h", rows_per_request=2, concurrency=3)
        next(results)
        for _ in range(2):
            assert server.polled.acquire(timeout=10)
        results.close()  # type: ignore[attr-defined]
        assert sorted(server.cancelled) == ["r1", "r2"]


def test_a_request_that_is_taken_after_the_map_was_left_is_cancelled_too() -> None:
    bench = Bench(queue=True)
    limit = bench.core.limit("1h")
    plan = MapPlan(
        bench.core,
        "digits",
        limit,
        rows_per_request=1,
        concurrency=1,
        options=Options(),
        return_errors=False,
    )
    steps, items = plan.run(), images(1)
    step = steps.send(None)
    while not isinstance(step, StartWork):
        step = steps.send(next(items) if isinstance(step, Pull) else bench.perform(cast(Send, step)))
    assert isinstance(steps.send("handle"), Pull | Finish)
    bench.drive(plan.abandon())
    assert bench.server.cancelled == []
    with pytest.raises(JobCancelled, match="r0"):
        bench.drive(step.work)
    assert bench.server.cancelled == ["r0"]


async def test_leaving_the_async_loop_cancels_what_is_in_flight() -> None:
    server = FakeServer(queue=True)
    hanging = asyncio.Event()
    polled: asyncio.Queue[str] = asyncio.Queue()

    async def handler(request: httpx.Request) -> httpx.Response:
        id_ = request.url.path.rpartition("/")[2]
        if request.method == "GET" and id_ in ("r1", "r2"):
            polled.put_nowait(id_)
            await hanging.wait()
        return server(request)

    client = async_client_of(server)
    client._transport = httpx.MockTransport(handler)
    async with client:
        async with aclosing(  # type: ignore[type-var]
            client.map("digits", images(6), budget="1h", rows_per_request=2, concurrency=3)
        ) as results:
            async for _ in results:
                assert {await polled.get(), await polled.get()} == {"r1", "r2"}
                break
        assert sorted(server.cancelled) == ["r1", "r2"]


def test_a_server_that_cannot_be_told_does_not_hold_the_caller() -> None:
    refused = httpx.ConnectError("refused")
    server = FakeServer(lambda _: server._infer(server.posts[-1]), pending("gone"), *[refused] * 200)
    with client_of(server) as client:
        results = client.map("digits", images(2), budget="1h", rows_per_request=1, concurrency=2)
        with pytest.raises(HybridRouterError):
            list(results)


async def test_items_may_come_asynchronously() -> None:
    async def source() -> AsyncIterator[Any]:
        for image in images(5):
            await asyncio.sleep(0)
            yield image

    async with async_client_of(FakeServer(queue=True)) as client:
        got = [int(r.output.argmax()) async for r in client.map("digits", source(), rows_per_request=2)]
    assert got == [0, 1, 2, 3, 4]


async def test_halves_of_a_refused_request_stay_within_the_concurrency() -> None:
    server = FakeServer()
    in_flight, most = 0, 0

    async def handler(request: httpx.Request) -> httpx.Response:
        nonlocal in_flight, most
        if request.method != "POST":
            return server(request)
        in_flight += 1
        most = max(most, in_flight)
        for _ in range(5):
            await asyncio.sleep(0)
        in_flight -= 1
        return problem(422, "no such picture")

    client = async_client_of(server)
    client._transport = httpx.MockTransport(handler)
    async with client:
        results = client.map("digits", images(16), rows_per_request=8, concurrency=3, on_error="return")
        answers = [answer async for answer in results]
    assert [type(answer) for answer in answers] == [InvalidRequest] * 16
    assert most == 3
