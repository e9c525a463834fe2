"""The online replica, with a real runner: a bad row fails alone, a broken model is nobody's fault."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizers.tensors import Tensors, concat, pack, unpack
from tests.support import tiny_onnx
from tests.support.virtual_time import settled
from workers.execution.faults import ModelFault
from workers.execution.work_limits import ThreadTimes
from workers.execution.work_watch import WorkWatch
from workers.online import BatchRunner

ROWS = 4


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[BatchRunner]:
    model, inputs, outputs = tiny_onnx.lookup(ROWS)
    tiny_onnx.write(tmp_path, model, inputs, outputs, {"index": np.array([3])})
    runner = BatchRunner("lookup", str(tmp_path), ["v"], 1)
    yield runner
    runner.close()


def batch(*requests: list[int]) -> bytes:
    joined = concat([{"index": np.array(indices, np.int64)} for indices in requests])
    return pack(joined, {"rows": [len(indices) for indices in requests]})


async def ask(replica: BatchRunner, *requests: list[int]) -> tuple[Tensors, dict[str, Any]]:
    return unpack(await replica.run("v", batch(*requests)))


def answers(outputs: Tensors) -> list[list[float]]:
    """What the good requests of a batch with bad ones got."""
    return [unpack(answer)[0]["value"].tolist() for answer in outputs["answers"]]


class Gate:
    """Stands in front of a replica's model: holds the run with number ``hold`` up, counts all."""

    def __init__(self, replica: BatchRunner, monkeypatch: pytest.MonkeyPatch, hold: int) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self.runs: list[list[int]] = []
        self._hold = hold
        runner = replica._loaded["v"]._runner
        self._run = runner.run
        monkeypatch.setattr(runner, "run", self._gated)

    def _gated(self, inputs: Tensors) -> Tensors:
        self.runs.append(inputs["index"].tolist())
        if len(self.runs) == self._hold:
            self.reached.set()
            assert self.go.wait(60)
        return self._run(inputs)


async def test_a_good_batch_is_answered_with_its_times(replica: BatchRunner) -> None:
    outputs, told = await ask(replica, [0, 3], [1])
    assert outputs["value"].tolist() == [10.0, 13.0, 11.0]
    assert set(told) == {"run_ms", "ran_ms", "wait_ms"}
    assert told["run_ms"] == told["ran_ms"] > 0
    _, again = await ask(replica, [2])
    assert again["ran_ms"] == pytest.approx(told["run_ms"] + again["run_ms"])


@pytest.mark.parametrize("warm", [False, True], ids=["in the thread", "on the loop"])
async def test_requests_that_make_the_model_fail_are_named_and_the_others_answered(
    replica: BatchRunner, warm: bool
) -> None:
    for _ in range(100 if warm else 0):
        await ask(replica, [0])
    outputs, told = await ask(replica, [0], [99], [1, 2], [3, 77, 3], [3])
    assert answers(outputs) == [[10.0], [11.0, 12.0], [13.0]]
    (first, why_first), (second, why_second) = told["bad"]
    assert (first, second) == (1, 3)
    assert "99" in why_first
    assert "rows 1 of 3: " in why_second
    assert (await ask(replica, [2]))[0]["value"].tolist() == [12.0]


async def test_a_batch_of_nothing_but_bad_requests_has_no_outputs(replica: BatchRunner) -> None:
    outputs, told = await ask(replica, [99], [98])
    assert answers(outputs) == []
    assert [place for place, _ in told["bad"]] == [0, 1]


async def test_a_model_that_fails_on_good_rows_too_blames_no_request(
    replica: BatchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(batch: Tensors) -> Tensors:
        raise MemoryError("the device is gone")

    monkeypatch.setattr(replica._loaded["v"]._runner, "run", broken)
    with pytest.raises(ModelFault, match="the device is gone"):
        await ask(replica, [0], [1])


async def test_a_message_without_rows_fails_as_the_model_does(replica: BatchRunner) -> None:
    with pytest.raises(Exception, match="99"):
        await replica.run("v", pack({"index": np.array([99], np.int64)}))


async def test_a_batch_that_was_too_large_only_as_a_whole_is_answered(
    replica: BatchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = replica._loaded["v"]._runner
    run = runner.run

    def small_only(inputs: Tensors) -> Tensors:
        if len(inputs["index"]) > 2:
            raise MemoryError("too large")
        return run(inputs)

    monkeypatch.setattr(runner, "run", small_only)
    outputs, told = await ask(replica, [0], [1], [2], [3])
    assert told["bad"] == []
    assert answers(outputs) == [[10.0], [11.0], [12.0], [13.0]]


async def test_bad_rows_cost_a_bounded_number_of_runs(
    replica: BatchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(replica, monkeypatch, hold=0)
    _, told = await ask(replica, [99] * 256)
    ((place, reason),) = told["bad"]
    assert place == 0
    assert "of 256 (the search for them ended after 32 runs" in reason
    # The batch itself, the probe before and after, the search.
    assert len(gate.runs) == 1 + 2 + 32


async def test_a_batch_that_comes_during_a_search_for_bad_rows_runs_before_the_rest_of_it(
    replica: BatchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(replica, monkeypatch, hold=5)
    bad = asyncio.create_task(ask(replica, [99] * 256))
    await asyncio.to_thread(gate.reached.wait, 60)
    good = asyncio.create_task(ask(replica, [1]))
    await settled()
    gate.go.set()
    outputs, _ = await good
    assert outputs["value"].tolist() == [11.0]
    assert gate.runs[5] == [1]
    assert not bad.done()
    await bad


async def test_a_long_batch_is_no_reason_to_replace_the_replica(
    replica: BatchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(replica, monkeypatch, hold=1)
    task = asyncio.create_task(ask(replica, [1]))
    await asyncio.to_thread(gate.reached.wait, 60)
    async with asyncio.timeout(5):  # it returns although the thread is busy
        await replica.check_health()
        await replica.check_health()
    assert not task.done()
    gate.go.set()
    await task


@pytest.mark.parametrize("hung_after_ms", [None, 200_000.0], ids=["by the profile", "by the policy"])
async def test_a_batch_that_hangs_makes_the_replica_unhealthy_until_it_ends(
    replica: BatchRunner, monkeypatch: pytest.MonkeyPatch, hung_after_ms: float | None
) -> None:
    now = [0.0]
    asleep = ThreadTimes(0.0, 0.0, is_runnable=False)
    replica._thread.watch = WorkWatch(read=lambda older, main: {main: asleep}, clock=lambda: now[0])
    replica._hung_after_ms = hung_after_ms
    gate = Gate(replica, monkeypatch, hold=1)
    task = asyncio.create_task(ask(replica, [1]))
    await asyncio.to_thread(gate.reached.wait, 60)
    for _ in range(30 if hung_after_ms is None else 200):
        await replica.check_health()
        now[0] += 1.0
    await replica.check_health()
    now[0] += 1.0
    with pytest.raises(RuntimeError, match="model lookup: variant 'v', a batch of 1 rows, hangs"):
        await replica.check_health()
    gate.go.set()
    await task
    await replica.check_health()
