"""Shadows and splits over the whole router in memory: what is compared and counted, and who never notices."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from optimizers.tensors import Array, Tensors, pack, unpack
from router.online.dispatcher import BadRows, DeadlineHopeless, HeapFull, OnlineAnswer, ReplicaFailed
from router.scheduling.admission import RunOnline
from router.service.metrics import Recorder
from router.service.requests import InferenceRequest
from router.service.shadow import ShadowRuns, alike
from tests.support.replica import Replica
from tests.support.served import POLICY, Served, serving
from tests.support.virtual_time import in_virtual_time, settled

SHADOWED = POLICY.replace(
    "to: online}\n  - {name: bulk",
    "to: online, variants: v, shadow: {variant: w, share: 1}}\n  - {name: bulk",
)
SPLIT = POLICY.replace("to: online}\n  - {name: bulk", "to: online, split: {v: 3, w: 1}}\n  - {name: bulk")


class Differs(Replica):
    """Its variant ``w`` does as ``how`` says: it ``raises``, finds rows ``bad``, or answers ``otherwise``."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.how = how

    async def send(self, name: str, message: bytes, replica: str = "") -> bytes:
        reply = await super().send(name, message, replica)
        if name == "v" or not self.how:
            return reply
        outputs, told = unpack(reply)
        if self.how == "raises":
            raise RuntimeError("no such operator")
        if self.how == "bad":
            return pack({}, {**told, "bad": [(0, "ValueError: a bad value")]})
        return pack({"y": outputs["y"] + 1}, told)


@contextmanager
def drawing(served: Served, *draws: float) -> Iterator[None]:
    """The router's draws in turn, for as long as it is open."""
    source = cycle(draws)
    with patch.object(served.service, "_draw", lambda: next(source)):
        yield


async def shadows(served: Served) -> dict[str, int]:
    await asyncio.gather(*served.service._shadows._tasks)
    assert {key[:3] for key in served.recorder.shadows} <= {("m", "fast", "w")}
    return {key[3]: count for key, count in served.recorder.shadows.items()}


@in_virtual_time
async def test_a_shadow_runs_after_its_caller_was_answered_and_agreement_is_counted() -> None:
    async with serving(policy=SHADOWED) as served:
        response = await served.infer(3.0)
        assert (response.status_code, response.headers["variant"]) == (200, "v")
        assert not served.recorder.shadows
        assert await shadows(served) == {"same": 1}
        assert [call.variant for call in served.replica.calls] == ["v", "w"]
        # One request, however often it ran.
        assert served.recorder.requests == {("m", "fast", "online", "v", "done"): 1}


@pytest.mark.parametrize(
    ("how", "outcome"), [("raises", "failed"), ("bad", "failed"), ("otherwise", "different")]
)
def test_callers_never_notice_what_becomes_of_their_shadows(how: str, outcome: str) -> None:
    @in_virtual_time
    async def check() -> None:
        async with serving(Differs(how), policy=SHADOWED) as served:
            answers = [await served.infer(3.0) for _ in range(3)]
            assert [a.json()["outputs"][0]["data"] for a in answers] == [[6.0]] * 3
            assert all(a.headers["deadline-met"] == "true" for a in answers)
            assert await shadows(served) == {outcome: 3}
            assert served.recorder.requests == {("m", "fast", "online", "v", "done"): 3}

    check()


@in_virtual_time
async def test_the_share_of_the_requests_has_a_shadow() -> None:
    async with serving(policy=SHADOWED.replace("share: 1", "share: 25%")) as served:
        with drawing(served, 0.24, 0.26, 0.9, 0.0):
            for _ in range(8):
                assert (await served.infer(3.0)).status_code == 200
            assert await shadows(served) == {"same": 4}


class Waits:
    """An online side whose runs last until they are told to end."""

    def __init__(self, error: Exception | None = None) -> None:
        self.go, self.error, self.deadlines = asyncio.Event(), error, list[float]()

    async def run(self, variant: str, inputs: Tensors, deadline_ms: float) -> OnlineAnswer:
        self.deadlines.append(deadline_ms)
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return OnlineAnswer(inputs, variant, 0.0, 1.0, 1)


def run_shadows(online: Waits, count: int) -> tuple[ShadowRuns, Recorder]:
    recorder = Recorder()
    runs = ShadowRuns(recorder, lambda: 5_000.0)
    served: Any = SimpleNamespace(online=online)
    for _ in range(count):
        call = InferenceRequest("m", floats([1.0]), budget_ms=300.0)
        runs.start(served, call, RunOnline("v", 0.0, 1.0, "fast", ""), floats([1.0]), "w")
    return runs, recorder


@in_virtual_time
async def test_no_more_than_64_are_under_way_and_the_others_are_skipped() -> None:
    online = Waits()
    _, recorder = run_shadows(online, 70)
    assert recorder.shadows == {("m", "fast", "w", "skipped"): 6}
    online.go.set()
    await settled()
    assert recorder.shadows["m", "fast", "w", "same"] == 64
    # Ten times the caller's budget, so that callers are always more urgent.
    assert set(online.deadlines) == {5_000.0 + 3_000.0}


@in_virtual_time
@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (DeadlineHopeless("late"), "skipped"),
        (HeapFull("full"), "skipped"),
        (ReplicaFailed("died"), "failed"),
        (BadRows("bad"), "failed"),
    ],
)
async def test_what_ended_without_an_answer_is_counted_as_what_it_is(error: Exception, outcome: str) -> None:
    online = Waits(error)
    online.go.set()
    _, recorder = run_shadows(online, 1)
    await settled()
    assert recorder.shadows == {("m", "fast", "w", outcome): 1}


@in_virtual_time
async def test_shadows_end_with_their_router() -> None:
    runs, recorder = run_shadows(Waits(), 3)
    await settled()
    await runs.close()
    assert not recorder.shadows
    assert len(asyncio.all_tasks()) == 1


@in_virtual_time
async def test_a_route_without_a_shadow_runs_none() -> None:
    async with serving(policy=SHADOWED) as served:
        await served.infer(3.0, budget_ms=1_000)
        assert await shadows(served) == {}


@in_virtual_time
async def test_a_split_gives_each_variant_its_share() -> None:
    async with serving(policy=SPLIT) as served:
        with drawing(served, 0.0, 0.5, 0.74, 0.76):
            answers = [await served.infer(3.0) for _ in range(8)]
    assert [answer.headers["variant"] for answer in answers] == ["v", "v", "v", "w"] * 2


@in_virtual_time
async def test_a_pinned_variant_is_not_split() -> None:
    async with serving(policy=SPLIT) as served:
        answers = [await served.infer(3.0, path="m/versions/w") for _ in range(5)]
    assert {answer.headers["variant"] for answer in answers} == {"w"}


def floats(*rows: list[float]) -> dict[str, Array]:
    return {"y": np.array(rows, dtype=np.float32)}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (floats([0.1, 0.9]), floats([0.4, 0.6]), True),
        (floats([0.1, 0.9], [0.2, 0.8]), floats([0.1, 0.9], [0.8, 0.2]), False),
        (floats([100.0]), floats([100.9]), True),
        (floats([100.0]), floats([102.0]), False),
        (floats([0.0]), floats([0.0009]), True),
        (floats([np.nan]), floats([np.nan]), True),
        (floats([1.0]), floats([1.0], [1.0]), False),
        (floats([1.0]), {"z": floats([1.0])["y"]}, False),
        ({"y": np.array([1, 2])}, {"y": np.array([1, 2])}, True),
        ({"y": np.array([1, 2])}, {"y": np.array([1, 3])}, False),
        ({"y": np.array([b"a"], object)}, {"y": np.array([b"a"], object)}, True),
        ({"y": np.array([b"a"], object)}, {"y": np.array([b"b"], object)}, False),
    ],
)
def test_answers_are_alike_where_they_say_the_same(
    one: dict[str, Array], other: dict[str, Array], same: bool
) -> None:
    assert alike(one, other) is same
    assert alike(other, one) is same
