"""The online replica, with a real runner: a bad row fails alone, a broken model is nobody's fault."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from optimizers import artifact
from optimizers.artifact import Manifest
from optimizers.profile import LatencyProfile, ProfilePoint
from optimizers.tensors import Tensors, TensorSpec, concat, pack, unpack
from workers.model_thread import ModelFault
from workers.online import BatchRunner

ROWS = 4


def lookup() -> bytes:
    """A table of ROWS numbers by index: any other index makes the runtime fail."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [ROWS], [10.0, 11.0, 12.0, 13.0])
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "index"], ["value"])],
        "lookup",
        [helper.make_tensor_value_info("index", TensorProto.INT64, ["rows"])],
        [helper.make_tensor_value_info("value", TensorProto.FLOAT, ["rows"])],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[BatchRunner]:
    manifest = Manifest(
        model="lookup",
        variant="v",
        runtime="onnx",
        inputs=(TensorSpec("index", "INT64", (-1,)),),
        outputs=(TensorSpec("value", "FP32", (-1,)),),
        metric="accuracy",
        quality={"accuracy": 1.0, "quality_drop": 0.0},
        profile=LatencyProfile((ProfilePoint(1, 1.0, 1.0),)),
        size_bytes=100,
        parameters=ROWS,
        settings={"weights": "model.onnx"},
    )
    artifact.write(tmp_path, manifest, {"model.onnx": lookup()})
    runner = BatchRunner("lookup", str(tmp_path), ["v"], 1)
    yield runner
    runner.close()


async def ask(replica: BatchRunner, *requests: list[int]) -> tuple[Tensors, dict[str, Any]]:
    batch = concat([{"index": np.array(indices, np.int64)} for indices in requests])
    return unpack(await replica.run("v", pack(batch, {"rows": [len(r) for r in requests]})))


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
    assert outputs["value"].tolist() == [10.0, 11.0, 12.0, 13.0]
    (first, why_first), (second, why_second) = told["bad"]
    assert (first, second) == (1, 3)
    assert "99" in why_first
    assert "rows 1 of 3: " in why_second
    assert (await ask(replica, [2]))[0]["value"].tolist() == [12.0]


async def test_a_batch_of_nothing_but_bad_requests_has_no_outputs(replica: BatchRunner) -> None:
    outputs, told = await ask(replica, [99], [98])
    assert outputs == {}
    assert [place for place, _ in told["bad"]] == [0, 1]


async def test_a_model_that_fails_on_good_rows_too_blames_no_request(
    replica: BatchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(batch: Tensors) -> Tensors:
        raise MemoryError("the device is gone")

    monkeypatch.setattr(replica._runners["v"], "run", broken, raising=True)
    with pytest.raises(ModelFault, match="the device is gone"):
        await ask(replica, [0], [1])


async def test_a_message_without_rows_fails_as_the_model_does(replica: BatchRunner) -> None:
    with pytest.raises(Exception, match="99"):
        await replica.run("v", pack({"index": np.array([99], np.int64)}))
