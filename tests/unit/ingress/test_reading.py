"""Bodies on their way: who is slow is told so and let go, who is not is read whole, in virtual time."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import orjson
import pytest

from router.ingress.http.reading import BODY_BYTES_PER_S, BODY_WITHIN_S, BodyReader
from router.ingress.semantics import ClientLeft, HttpError
from tests.support.served import serving
from tests.support.slow_clients import trickling
from tests.support.virtual_time import in_virtual_time, now_ms, settled

LIMIT = 10 << 20
INFER = "/v2/models/m/infer"


def endless(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


def in_two(size: int) -> Callable[[], Awaitable[dict[str, Any]]]:
    """A body in two pieces."""
    pieces = [(bytes(size - 10), True), (bytes(10), False)]

    async def receive() -> dict[str, Any]:
        body, more = pieces.pop(0)
        return {"type": "http.request", "body": body, "more_body": more}

    return receive


async def silent() -> dict[str, Any]:
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nothing comes")


@in_virtual_time
@pytest.mark.parametrize("every_s", [0.1, 1.0, 5.0])
async def test_a_body_that_trickles_is_ended(every_s: float) -> None:
    reader, began = BodyReader(), now_ms()
    with pytest.raises(HttpError, match="the body did not come within 20 s") as caught:
        await reader.read(trickling(endless(b"x"), every_s), {}, LIMIT)
    assert caught.value.status == 408
    assert (b"connection", b"close") in caught.value.headers
    assert BODY_WITHIN_S <= (now_ms() - began) / 1_000 <= BODY_WITHIN_S + 2
    assert reader.reading == 0


@in_virtual_time
async def test_a_client_that_sends_nothing_is_ended() -> None:
    with pytest.raises(HttpError, match="did not come within"):
        await BodyReader().read(silent, {}, LIMIT)


@in_virtual_time
async def test_a_body_on_a_slow_link_has_the_time_that_it_needs() -> None:
    # A megabyte takes a minute at 16 KiB a second.
    size, left = 1 << 20, [b"x" * BODY_BYTES_PER_S] * 64

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(1)
        return {"type": "http.request", "body": left.pop(), "more_body": bool(left)}

    assert len(await BodyReader().read(receive, {}, LIMIT)) == size
    assert now_ms() >= 64_000


@in_virtual_time
async def test_slow_clients_are_ended_one_by_one_and_the_rest_are_read() -> None:
    reader = BodyReader()

    async def whole() -> dict[str, Any]:
        return {"type": "http.request", "body": b"all of it"}

    slow = [asyncio.create_task(reader.read(trickling(endless(b"x"), 3.0), {}, LIMIT)) for _ in range(100)]
    await settled()
    assert reader.reading == 100
    assert [await reader.read(whole, {}, LIMIT) for _ in range(10)] == [b"all of it"] * 10
    ended = await asyncio.gather(*slow, return_exceptions=True)
    assert {e.status for e in ended if isinstance(e, HttpError)} == {408}
    assert len(ended) == 100
    assert reader.reading == 0


@in_virtual_time
async def test_unfinished_bodies_hold_no_more_than_a_few_large_ones() -> None:
    limit, many = 1 << 20, 10
    reader = BodyReader(many * limit)

    def nearly_all() -> Iterator[bytes]:
        yield bytes(limit - 1_000)
        yield from endless(b"x")

    held = [asyncio.create_task(reader.read(trickling(nearly_all(), 1.0), {}, limit)) for _ in range(100)]
    await asyncio.sleep(1.5)
    refused = [task for task in held if task.done()]
    assert len(refused) == 100 - many
    errors = [task.exception() for task in refused]
    assert {e.status for e in errors if isinstance(e, HttpError)} == {429}
    left = [task for task in held if not task.done()]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    assert len(await reader.read(in_two(limit), {}, limit)) == limit  # there is room again


@in_virtual_time
async def test_whoever_is_cancelled_from_outside_is_cancelled() -> None:
    reader = BodyReader()
    task = asyncio.create_task(reader.read(silent, {}, LIMIT))
    await settled()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reader.reading == 0


@in_virtual_time
async def test_a_client_that_leaves_is_nobody_to_answer() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientLeft):
        await BodyReader().read(receive, {}, LIMIT)


def request(*values: float) -> bytes:
    entry = {"name": "x", "datatype": "FP32", "shape": [len(values), 1], "data": values}
    return orjson.dumps({"inputs": [entry]})


@in_virtual_time
async def test_a_compressed_request_is_answered_compressed_where_that_pays() -> None:
    async with serving() as served:
        headers = {"latency-budget-ms": "400", "content-encoding": "gzip", "accept-encoding": "gzip"}
        small = await served.client.post(INFER, content=gzip.compress(request(3)), headers=headers)
        assert small.json()["outputs"][0]["data"] == [6.0]
        assert "content-encoding" not in small.headers
        headers["accept-encoding"] = "gzip;q=0"
        assert (await served.client.get("/v2/models", headers=headers)).status_code == 200


@in_virtual_time
@pytest.mark.parametrize(("accept", "coding"), [("gzip", "gzip"), ("deflate", "deflate"), ("gzip;q=0", None)])
async def test_a_large_answer_comes_as_its_reader_takes_it(accept: str, coding: str | None) -> None:
    async with serving() as served:

        async def respond(scope: Any, *_: Any) -> Any:
            return 200, [(b"content-type", b"application/json")], b'{"a": 1}' + b" " * 20_000

        served.ingress._respond = respond  # type: ignore[method-assign]
        reply = await served.client.get("/v2", headers={"accept-encoding": accept})
        assert reply.headers.get("content-encoding") == coding
        assert reply.headers["vary"] == "accept-encoding"
        assert reply.json() == {"a": 1}
        assert (int(reply.headers["content-length"]) < 1_000) is (coding is not None)
