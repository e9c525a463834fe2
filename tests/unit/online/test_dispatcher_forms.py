"""Requests whose rows differ in shape: all are answered, and none fails for another's sake. Virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from optimizers.tensors import Tensors, TensorSpec, pack, unpack
from router.online.dispatcher import BadRows, OnlineAnswer, OnlineDispatcher
from tests.support.replica import Replica, variant
from tests.support.virtual_time import in_virtual_time, now_ms, settled

OPEN = (TensorSpec("x", "FP32", (-1, -1)),)


def dispatcher(send: Any, inputs: tuple[TensorSpec, ...] = OPEN) -> OnlineDispatcher:
    return OnlineDispatcher(
        {"v": variant()}, send, replicas=1, max_batch=8, max_waiting=100, inputs=inputs, clock=now_ms
    )


def ask(target: OnlineDispatcher, inputs: Tensors, budget_ms: float = 60_000.0) -> asyncio.Task[OnlineAnswer]:
    # Without a row cost of its own, a long row counts as several.
    call = target.run("v", inputs, now_ms() + budget_ms, row_cost=len(inputs["x"]))
    return asyncio.create_task(call)


def row(size: int, value: float = 1.0) -> Tensors:
    return {"x": np.full((1, size), value, np.float32)}


async def busy(target: OnlineDispatcher) -> list[asyncio.Task[OnlineAnswer]]:
    tasks = [ask(target, {"x": np.zeros((8, 1), np.float32)}) for _ in range(2)]
    await settled()
    return tasks


@in_virtual_time
async def test_requests_of_different_open_sizes_that_wait_together_are_all_answered() -> None:
    replica = Replica()
    target = dispatcher(replica.send)
    await busy(target)
    sizes = [5, 7, 5, 5, 7, 9]
    answers = await asyncio.gather(*(ask(target, row(size, number)) for number, size in enumerate(sizes)))
    assert [a.outputs["y"].tolist() for a in answers] == [[[2.0 * n] * s] for n, s in enumerate(sizes)]
    assert [len(values) for values in replica.batches[2:]] == [15, 14, 9]
    assert [a.batch_rows for a in answers] == [3, 2, 3, 3, 2, 1]


@in_virtual_time
async def test_rows_of_bytes_with_an_open_size_are_grouped_as_well() -> None:
    batches: list[list[int]] = []

    async def send(name: str, message: bytes, replica: str) -> bytes:
        inputs, _ = unpack(message)
        batches.append(list(inputs["x"].shape))
        await asyncio.sleep(0.01)
        return pack({"y": inputs["x"]}, {"run_ms": 10.0, "wait_ms": 0.0})

    target = dispatcher(send, (TensorSpec("x", "BYTES", (-1, -1)),))
    texts = [np.array([[b"a"] * size], object) for size in (1, 1, 2, 3, 2)]
    answers = await asyncio.gather(*(ask(target, {"x": each}) for each in texts))
    assert [a.outputs["y"].tolist() for a in answers] == [each.tolist() for each in texts]
    assert sorted(batches) == [[1, 1], [1, 1], [1, 3], [2, 2]]


@in_virtual_time
async def test_texts_share_a_batch_whatever_their_length() -> None:
    batches: list[list[bytes]] = []

    async def send(name: str, message: bytes, replica: str) -> bytes:
        inputs, _ = unpack(message)
        batches.append(inputs["x"].tolist())
        await asyncio.sleep(0.01)
        return pack({"y": inputs["x"]}, {"run_ms": 10.0, "wait_ms": 0.0})

    target = dispatcher(send, (TensorSpec("x", "BYTES", (-1,)),))
    first = [ask(target, {"x": np.array([b""] * 8, object)}) for _ in range(2)]
    await settled()
    texts = [b"short", b"a long text", b""]
    await asyncio.gather(*first, *(ask(target, {"x": np.array([text], object)}) for text in texts))
    assert batches[2:] == [texts]


@in_virtual_time
async def test_a_request_that_cannot_be_encoded_fails_alone() -> None:
    async def send(name: str, message: bytes, replica: str) -> bytes:
        inputs, _ = unpack(message)
        await asyncio.sleep(0.01)
        return pack({"y": inputs["x"]}, {"run_ms": 10.0, "wait_ms": 0.0})

    target = dispatcher(send, (TensorSpec("x", "BYTES", (-1,)),))
    await asyncio.gather(*(ask(target, {"x": np.array([b""] * 8, object)}) for _ in range(2)))
    first = [ask(target, {"x": np.array([b""] * 8, object)}) for _ in range(2)]
    await settled()
    texts = ["good", "\ud800", "fine"]
    answers = await asyncio.gather(
        *first, *(ask(target, {"x": np.array([text], object)}) for text in texts), return_exceptions=True
    )
    good, bad, fine = answers[2:]
    assert isinstance(good, OnlineAnswer) and good.outputs["y"].tolist() == [b"good"]
    assert isinstance(fine, OnlineAnswer) and fine.outputs["y"].tolist() == [b"fine"]
    assert isinstance(bad, BadRows)
    assert "cannot be sent to the model" in str(bad)


@in_virtual_time
async def test_parts_of_one_request_whose_outputs_differ_in_shape_are_explained() -> None:
    calls = 0

    async def send(name: str, message: bytes, replica: str) -> bytes:
        nonlocal calls
        calls += 1
        inputs, _ = unpack(message)
        await asyncio.sleep(0.01)
        return pack({"y": np.zeros((len(inputs["x"]), calls))}, {"run_ms": 10.0, "wait_ms": 0.0})

    with pytest.raises(BadRows, match="Send at most 8 rows in a request") as raised:
        await ask(dispatcher(send), {"x": np.zeros((9, 2), np.float32)})
    assert "rows of the shapes [1] and [2] cannot be joined" in str(raised.value)


@in_virtual_time
async def test_late_requests_of_different_sizes_are_run_all_the_same() -> None:
    replica = Replica()
    target = dispatcher(replica.send)
    await busy(target)
    late = [
        asyncio.create_task(target.run("v", row(size), now_ms() + 1.0, droppable=False))
        for size in (5, 7, 5, 7)
    ]
    answers = await asyncio.gather(*late)
    assert [a.outputs["y"].shape for a in answers] == [(1, 5), (1, 7), (1, 5), (1, 7)]


@in_virtual_time
async def test_callers_who_leave_take_no_others_of_their_form_along() -> None:
    replica = Replica()
    target = dispatcher(replica.send)
    await busy(target)
    tasks = [ask(target, row(size, size)) for size in (5, 7, 5, 7, 5)]
    await settled()
    tasks[2].cancel()
    tasks[3].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [len(values) for values in replica.batches[2:]] == [10, 7]
    assert [isinstance(a, OnlineAnswer) for a in answers] == [True, True, False, False, True]
