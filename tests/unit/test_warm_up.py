"""Warm-up and probes in virtual time: models do not wait for each other, and the log says how far each is."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from optimizers.artifact import Manifest
from optimizers.profile import LatencyProfile, ProfilePoint
from optimizers.tensors import TensorSpec
from router.app import Router
from router.call import ServedModel
from router.dispatch import OnlineDispatcher
from router.policy import Online
from router.warm_up import WarmUp
from tests.support.replica import Replica, run_ms, variant
from tests.support.virtual_time import in_virtual_time, now_ms, settled

INPUTS = (TensorSpec("x", "FP32", (-1, 1)),)
SECTION = Online(variants=("v",), max_batch=8)


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
async def running(**replicas: Replica) -> AsyncIterator[WarmUp]:
    """The warm-up of one model for each replica."""
    models = {name: served(name, replica) for name, replica in replicas.items()}
    warm_up = WarmUp(models, dict.fromkeys(models, SECTION))
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
        assert not warm_up.is_complete


@in_virtual_time
async def test_a_model_that_is_not_served_online_is_warm() -> None:
    async with running() as warm_up:
        assert warm_up.is_warm("queued")
        assert warm_up.is_complete


@in_virtual_time
async def test_every_model_is_probed_while_another_has_no_replicas() -> None:
    stopped, healthy = Replica(), Replica()
    async with running(stopped=stopped, healthy=healthy) as warm_up:
        await asyncio.sleep(1.0)
        assert warm_up.is_complete
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
        assert not warm_up.is_complete
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
        await WarmUp({"m": model}, {"m": SECTION}).run()
    assert "a fault of the router's own" in str(raised.value.exceptions)


async def test_a_router_whose_warm_up_died_is_unhealthy() -> None:
    async def dies() -> None:
        raise AttributeError("a fault of the router's own")

    router: Any = Router.__new__(Router)
    router._own, router._tasks = [], [asyncio.create_task(dies())]
    await router.check_health()
    await settled()
    with pytest.raises(RuntimeError, match="a fault of the router's own"):
        await router.check_health()
