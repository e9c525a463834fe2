"""Warm-up and probes in virtual time: models do not wait for each other, and the log says how far each is."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from optimizers.artifact import Manifest
from optimizers.profile import LatencyProfile, ProfilePoint
from optimizers.runtimes.example_row import Example, zeros
from optimizers.tensors import TensorSpec
from router.online.dispatcher import OnlineDispatcher
from router.policy import OnlineSection, Policy
from router.service.requests import ServedModel
from router.serving.application import Router
from router.serving.warm_up import WarmUp, ready_within_s
from tests.support.replica import Replica, run_ms, variant
from tests.support.virtual_time import in_virtual_time, now_ms, settled

INPUTS = (TensorSpec("x", "FP32", (-1, 1)),)
SECTION = OnlineSection(variants=("v",), max_batch=8)
ZEROS = Example(zeros(INPUTS), is_real=False)


def served(name: str, replica: Replica) -> ServedModel:
    manifest = Manifest(
        model=name,
        variant="v",
        runtime="onnx",
        inputs=INPUTS,
        outputs=(TensorSpec("y", "FP32", (-1, 1)),),
        metric="accuracy",
        quality={"accuracy": 1.0, "quality_drop": 0.0},
        profile=LatencyProfile(tuple(ProfilePoint(n, run_ms(n), run_ms(n)) for n in (1, 8))),
        size_bytes=1,
        parameters=1,
    )
    dispatcher = OnlineDispatcher(
        {"v": variant()}, replica.send, replicas=1, max_batch=8, max_waiting=100, clock=now_ms
    )
    return ServedModel(name, INPUTS, manifest.outputs, {"v": manifest}, dispatcher, None)


@asynccontextmanager
async def running(example: Example = ZEROS, **replicas: Replica) -> AsyncIterator[WarmUp]:
    """The warm-up of one model for each replica."""
    models = {name: served(name, replica) for name, replica in replicas.items()}
    warm_up = WarmUp(models, dict.fromkeys(models, SECTION), dict.fromkeys(models, example))
    task = asyncio.create_task(warm_up.run())
    await settled()
    try:
        yield warm_up
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for model in models.values():
            assert model.online is not None
            await model.online.close()


@in_virtual_time
async def test_a_model_without_replicas_keeps_no_other_from_being_warm() -> None:
    async with running(absent=Replica(hangs=True), present=Replica()) as warm_up:
        assert not warm_up.is_warm("present")
        await asyncio.sleep(1.0)
        assert warm_up.is_warm("present")
        assert not warm_up.is_warm("absent")


@in_virtual_time
async def test_a_model_that_is_not_served_online_is_warm() -> None:
    async with running() as warm_up:
        assert warm_up.is_warm("queued")


@in_virtual_time
async def test_every_model_is_probed_while_another_has_no_replicas() -> None:
    stopped, healthy = Replica(), Replica()
    async with running(stopped=stopped, healthy=healthy) as warm_up:
        await asyncio.sleep(1.0)
        assert warm_up.is_warm("stopped") and warm_up.is_warm("healthy")
        stopped.hangs = True
        before = len(healthy.calls)
        await asyncio.sleep(21.0)
        # Each is due after 5 s without news.
        assert len(healthy.calls) - before >= 3


@in_virtual_time
async def test_a_probe_ends_at_its_own_deadline(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "ray.serve")
    replica = Replica()
    async with running(stopped=replica):
        await asyncio.sleep(1.0)
        replica.hangs = True
        await asyncio.sleep(6.5)
    assert "model stopped: variant v gave no answer to a probe" in caplog.messages


@in_virtual_time
async def test_the_log_says_how_far_a_slow_warm_up_is_at_a_bounded_rate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "ray.serve")
    broken = Replica(faults=deque(RuntimeError("no replica") for _ in range(2_000)))
    async with running(absent=broken) as warm_up:
        await asyncio.sleep(60.0)
        assert not warm_up.is_warm("absent")
    assert 4 <= len(caplog.messages) <= 7
    assert caplog.messages[-1] == (
        "model absent is not ready after 50 s: 0 of 7 calls are done, next is variant v, batch of 1: "
        "variant 'v' could not run the batch: no replica"
    )


@in_virtual_time
async def test_a_warm_up_that_dies_ends_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model = served("m", Replica())

    async def broken(*args: object, **named: object) -> None:
        raise AttributeError("a fault of the router's own")

    monkeypatch.setattr(OnlineDispatcher, "run", broken)
    with pytest.raises(ExceptionGroup) as raised:
        await WarmUp({"m": model}, {"m": SECTION}, {"m": ZEROS}).run()
    assert "a fault of the router's own" in str(raised.value.exceptions)


async def test_a_router_whose_warm_up_died_is_unhealthy() -> None:
    async def dies() -> None:
        raise AttributeError("a fault of the router's own")

    router: Any = SimpleNamespace(_own=[], _tasks=[asyncio.create_task(dies())])
    await Router.check_health(router)
    await settled()
    with pytest.raises(RuntimeError, match="a fault of the router's own"):
        await Router.check_health(router)


@in_virtual_time
async def test_models_are_warmed_up_with_their_example_row() -> None:
    replica = Replica(bad={0.0})
    example = Example({"x": np.array([[7.0]], np.float32)}, is_real=True)
    async with running(example, m=replica) as warm_up:
        await asyncio.sleep(1.0)
        assert warm_up.is_warm("m")
    assert replica.batches == [[7.0]] * 5 + [[7.0] * 4, [7.0] * 8]


@in_virtual_time
async def test_a_model_that_does_not_take_zeros_is_warm_all_the_same_and_is_not_probed() -> None:
    replica = Replica(bad={0.0})
    async with running(m=replica) as warm_up:
        await asyncio.sleep(10.0)
        assert warm_up.is_warm("m")
        calls = len(replica.calls)
        await asyncio.sleep(60.0)
        assert len(replica.calls) == calls


@in_virtual_time
async def test_a_variant_that_takes_zeros_is_probed_beside_one_that_does_not() -> None:
    replica = Replica()
    send = replica.send

    async def fussy(name: str, message: bytes, to: str = "") -> bytes:
        replica.bad = {0.0} if name == "fussy" else set()
        return await send(name, message, to)

    model = served("m", replica)
    both = {"fussy": variant("fussy"), "v": variant("v")}
    model.online = OnlineDispatcher(both, fussy, replicas=1, max_batch=8, max_waiting=100, clock=now_ms)
    task = asyncio.create_task(
        WarmUp({"m": model}, {"m": OnlineSection(variants=("fussy", "v"), max_batch=8)}, {"m": ZEROS}).run()
    )
    await asyncio.sleep(30.0)
    before = len(replica.calls)
    await asyncio.sleep(30.0)
    assert {call.variant for call in replica.calls[before:]} == {"v"}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await model.online.close()


@in_virtual_time
async def test_the_example_row_counts_as_a_row_of_usual_size_and_teaches_nothing() -> None:
    text = (TensorSpec("x", "FP32", (-1, -1)),)
    replica = Replica()
    model = served("m", replica)
    model.online = OnlineDispatcher(
        {"v": variant()}, replica.send, replicas=1, max_batch=8, max_waiting=100, inputs=text, clock=now_ms
    )
    example = Example({"x": np.ones((1, 500), np.float32)}, is_real=True)
    task = asyncio.create_task(WarmUp({"m": model}, {"m": SECTION}, {"m": example}).run())
    await asyncio.sleep(2.0)
    assert max(map(len, replica.batches)) == 8 * 500
    assert model.online.row_cost.shares == []
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await model.online.close()


@in_virtual_time
async def test_a_model_that_does_not_take_its_own_example_is_not_warm() -> None:
    replica = Replica(bad={7.0})
    example = Example({"x": np.array([[7.0]], np.float32)}, is_real=True)
    async with running(example, m=replica) as warm_up:
        await asyncio.sleep(60.0)
        assert not warm_up.is_warm("m")


@in_virtual_time
async def test_no_warm_up_call_is_larger_than_a_request_may_be() -> None:
    replica = Replica()
    example = Example({"x": np.zeros((1, 1_000_000), np.float32)}, is_real=True)
    async with running(example, m=replica) as warm_up:
        await asyncio.sleep(10.0)
        assert warm_up.is_warm("m")
    assert max(map(len, replica.batches)) == 4_000_000


def policy(*online: dict[str, Any]) -> Policy:
    models = {
        f"m{n}": {"artifacts": "a", "online": {"variants": ["v"], "max_batch": 64, **one}}
        for n, one in enumerate(online)
    }
    return Policy.model_validate({"models": models})


def profiles(*row_ms: float) -> dict[str, dict[str, Manifest]]:
    found = {}
    for n, each in enumerate(row_ms):
        points = tuple(ProfilePoint(rows, each * rows, each * rows) for rows in (1, 64))
        manifest = served("m", Replica()).variants["v"]
        found[f"m{n}"] = {"v": dataclasses.replace(manifest, profile=LatencyProfile(points))}
    return found


@in_virtual_time
async def test_how_long_a_start_may_take_follows_from_the_profiles_and_can_be_set() -> None:
    fast, slow = ready_within_s(policy({}), profiles(0.1)), ready_within_s(policy({}), profiles(1_000.0))
    assert 60.0 < fast < 61.0
    # One row five times, four, sixteen and 64 rows at a second each, on a slower machine.
    assert slow == pytest.approx(60.0 + 4.0 * (5 + 4 + 16 + 64))
    assert ready_within_s(policy({}, {}), profiles(1_000.0, 1_000.0)) > slow + 300.0
    assert ready_within_s(policy({"ready_within": "5min"}), profiles(1_000.0)) == 300.0
    assert ready_within_s(policy({"ready_within": "5min"}, {}), profiles(0.1, 0.1)) == 300.0
