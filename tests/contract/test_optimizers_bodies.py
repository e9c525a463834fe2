"""Weights that only the bodies of If, Loop and Scan use: every ONNX variant keeps them and answers alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from optimizers import runner
from optimizers.formats import graphs
from optimizers.formats.errors import PassError
from optimizers.formats.graphs import rename_inputs, rename_outputs
from optimizers.formats.in_memory import predictor
from optimizers.formats.onnx_slim import slim
from optimizers.passes.cast import Cast
from optimizers.passes.cluster import Cluster
from optimizers.passes.quantize_dynamic import QuantizeDynamic
from optimizers.passes.quantize_static import QuantizeStatic
from optimizers.passes.quantize_weights import QuantizeWeights, quantize_weights
from optimizers.passes.technique import PassSpec
from optimizers.pipeline import pipeline
from optimizers.pipeline.recipe import Latency, Recipe, Variant
from optimizers.task import PassContext, TaskModel
from tests.support import onnx_bodies
from tests.support.onnx_bodies import INPUTS, MODELS, OTHER_ROWS, OUTPUTS, ROWS

pytestmark = pytest.mark.slow

#: Passes, and the mean error that they may make of the mean magnitude of the answers.
PASSES: dict[str, tuple[tuple[PassSpec, ...], float]] = {
    "plain": ((), 1e-6),
    "openvino": ((), 1e-5),
    "float16": ((Cast("float16"),), 5e-3),
    "weights8": ((QuantizeWeights(),), 0.02),
    "weights4": ((QuantizeWeights(bits=4, block=16),), 0.2),
    "clustered": ((Cluster(clusters=256, least=64, epochs=0),), 1e-5),
    "dynamic": ((QuantizeDynamic(),), 0.05),
}


def _answers(model: onnx.ModelProto, rows: np.ndarray) -> np.ndarray:
    return predictor(TaskModel("onnx", model, INPUTS, OUTPUTS), None)({"x": rows})["y"]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODELS)
def test_a_slim_graph_answers_as_the_whole_one(name: str) -> None:
    model = MODELS[name]()
    small = slim(model)
    onnx.checker.check_model(small)
    for rows in (ROWS, OTHER_ROWS, ROWS[:1]):
        np.testing.assert_array_equal(_answers(small, rows), _answers(model, rows))
    assert small.ByteSize() < model.ByteSize()


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_variant_answers_as_the_original(name: str, tmp_path: Path) -> None:
    task = onnx_bodies.task(name)
    variants = tuple(
        Variant(kind, passes, runtime="openvino" if kind == "openvino" else "")
        for kind, (passes, _) in PASSES.items()
    )
    recipe = Recipe(name.lower(), "none:none", variants, latency=Latency((1, 4), 0.01))
    made = pipeline.run(recipe, tmp_path, task=task, report=False).artifacts
    for kind, (_, most) in PASSES.items():
        loaded = runner.load(made[kind])
        for rows in (ROWS, OTHER_ROWS):
            exact = _answers(task.model.value, rows)
            error = np.mean(np.abs(loaded.run({"x": rows})["y"] - exact)) / np.mean(np.abs(exact))
            assert error <= most, f"{kind}: {error}"
        loaded.close()


@pytest.mark.parametrize("name", MODELS)
def test_weights_in_bodies_count_and_become_smaller(name: str, tmp_path: Path) -> None:
    task = onnx_bodies.task(name)
    recipe = Recipe(
        "m", "none:none", (Variant("a"), Variant("b", PASSES["weights8"][0])), latency=Latency((1,), 0.01)
    )
    made = pipeline.run(recipe, tmp_path, task=task, report=False).artifacts
    assert made["a"].manifest.parameters >= onnx_bodies.WIDTH**2
    kept = onnx.load(made["b"].weights()).graph
    large = [
        i for each in graphs.walk(kept) for i in each.initializer if np.prod(i.dims) >= onnx_bodies.WIDTH**2
    ]
    assert large and all(i.data_type == onnx.TensorProto.INT8 for i in large)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("wanted", ["A", "B", "taken", "state", "start", "line", "row", "mean", "C", "fresh"])
def test_inputs_and_outputs_get_any_name_although_a_body_has_it(name: str, wanted: str) -> None:
    model = MODELS[name]()
    exact = _answers(model, ROWS), _answers(model, OTHER_ROWS)
    rename_inputs(model, [wanted])
    rename_outputs(model, [f"{wanted}/out:0"])
    onnx.checker.check_model(model)
    renamed = TaskModel(
        "onnx", model, (replace(INPUTS[0], name=wanted),), (replace(OUTPUTS[0], name=f"{wanted}/out:0"),)
    )
    run = predictor(renamed, None)  # type: ignore[arg-type]
    for rows, before in zip((ROWS, OTHER_ROWS), exact, strict=True):
        np.testing.assert_array_equal(run({wanted: rows})[f"{wanted}/out:0"], before)


def test_a_layer_in_a_body_can_be_left_out() -> None:
    task = onnx_bodies.task("If")
    spec = QuantizeWeights(exclude=("then_*",))
    done = quantize_weights(task.model, spec, PassContext(task, predictor(task.model, task))).value.graph
    kinds = {i.name: i.data_type for each in graphs.walk(done) for i in each.initializer}
    assert kinds["A"] == onnx.TensorProto.FLOAT and kinds["B_quantized"] == onnx.TensorProto.INT8


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_a_quantizer_that_does_not_reach_into_bodies_says_so(name: str, engine: str, tmp_path: Path) -> None:
    task = onnx_bodies.task(name)
    variants = (Variant("a"), Variant("b", (QuantizeStatic(rows=64, engine=engine),), runtime=engine))
    recipe = Recipe("m", "none:none", variants, latency=Latency((1,), 0.01))
    with pytest.raises(PassError, match=r"^variants.b: quantize_static: "):
        pipeline.run(recipe, tmp_path, task=task, report=False)
