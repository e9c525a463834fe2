"""Quantization of graphs: what becomes integer, what stays float, and what it is told to leave alone."""

from __future__ import annotations

import doctest
from functools import cache

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizers.formats.errors import PassError
from optimizers.formats.in_memory import predictor
from optimizers.formats.onnx_slim import slim
from optimizers.passes import quantizers
from optimizers.passes.quantize_dynamic import QuantizeDynamic, quantize_dynamic
from optimizers.passes.quantize_static import QuantizeStatic, quantize_static, sensitivity
from optimizers.passes.quantize_weights import QuantizeWeights, quantize_weights
from optimizers.passes.quantizers import fake_quantize
from optimizers.task import Dataset, Metric, PassContext, Task, TaskModel
from optimizers.tensors import Tensors, TensorSpec

INPUTS = (TensorSpec("x", "FP32", (-1, 32)),)
OUTPUTS = (TensorSpec("y", "FP32", (-1, 8)),)
RNG = np.random.default_rng(0)
ROWS = np.abs(RNG.normal(size=(64, 32))).astype(np.float32)


def _graph() -> onnx.ModelProto:
    """y = Relu(x @ A) @ B + c for x above 0, where A has one column that is huge and never passes Relu."""
    a = RNG.normal(size=(32, 64)).astype(np.float32)
    a[:, 0] = -1000
    b = RNG.normal(size=(64, 8)).astype(np.float32)
    weights = {"A": a, "B": b, "c": np.ones(8, dtype=np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "B", "c"], ["y"], name="second"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 8])],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@cache
def _task() -> Task:
    model = TaskModel("onnx", _graph(), INPUTS, OUTPUTS)
    exact = _run(model)["y"]

    def closeness(predict: object, data: Dataset) -> float:
        return -float(np.mean(np.abs(predict(data.inputs)["y"] - exact)))  # type: ignore[operator]

    data = Dataset({"x": ROWS})
    return Task(
        name="t",
        model=model,
        train=data,
        validation=data,
        test=data,
        metric=Metric("closeness", closeness),
        fidelity=lambda ours, theirs: -float(np.mean(np.abs(ours["y"] - theirs["y"]))),
        digest="t",
    )


def _run(model: TaskModel) -> Tensors:
    return predictor(model, None)({"x": ROWS})  # type: ignore[arg-type]


def _context() -> PassContext:
    return PassContext(_task(), _run)  # type: ignore[arg-type]


def _types(model: TaskModel) -> dict[str, int]:
    return {i.name: i.data_type for i in model.value.graph.initializer}


def _error(model: TaskModel) -> float:
    """Mean absolute error over the mean magnitude."""
    exact = _run(_task().model)["y"]
    return float(np.abs(_run(model)["y"] - exact).mean() / np.abs(exact).mean())


def test_the_worked_example() -> None:
    assert fake_quantize([1.0, 2.0, 3.0, 4.0], scale=2).tolist() == [1.0, 2.0, 3.0, 4.0]
    assert doctest.testmod(quantizers).failed == 0


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
def test_a_scale_must_be_finite_and_positive(scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        fake_quantize([1.0], scale)


def test_fake_quantize_keeps_the_float_type() -> None:
    assert fake_quantize(np.ones(2, dtype=np.float32), 4).dtype == np.float32
    assert fake_quantize([1, 2], 4).dtype == np.float64


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "entropy"])
def test_static_makes_weights_biases_and_activations_integers(calibration: str) -> None:
    model = quantize_static(_task().model, QuantizeStatic(calibration=calibration, rows=64), _context())
    types = _types(model)
    assert types["A_quantized"] == TensorProto.INT8 and types["B_quantized"] == TensorProto.INT8
    assert types["c_quantized"] == TensorProto.INT32
    ops = [n.op_type for n in model.value.graph.node]
    assert ops.count("QuantizeLinear") >= 2  # the activations
    assert _error(model) < 0.05


def test_per_channel_saves_small_columns_beside_a_large_one() -> None:
    fine = quantize_static(_task().model, QuantizeStatic(rows=64), _context())
    coarse = quantize_static(_task().model, QuantizeStatic(rows=64, per_channel=False), _context())
    assert _error(coarse) > 5 * _error(fine)


def test_the_model_that_comes_in_stays_as_it_was() -> None:
    before = _task().model.value.SerializeToString()
    quantize_static(_task().model, QuantizeStatic(rows=64), _context())
    quantize_weights(_task().model, QuantizeWeights(), _context())
    quantize_weights(_task().model, QuantizeWeights(bits=4), _context())
    assert _task().model.value.SerializeToString() == before


def test_excluded_layers_stay_float_and_a_typo_is_refused() -> None:
    model = quantize_static(_task().model, QuantizeStatic(rows=64, exclude=("fir*",)), _context())
    assert _types(model)["A"] == TensorProto.FLOAT and "B_quantized" in _types(model)
    with pytest.raises(PassError, match=r"'frist'.*first"):
        quantize_static(_task().model, QuantizeStatic(rows=64, exclude=("frist",)), _context())


def test_dynamic_needs_no_calibration_and_leaves_excluded_layers_alone() -> None:
    model = quantize_dynamic(_task().model, QuantizeDynamic(exclude=("second",)), _context())
    assert _types(model)["A_quantized"] == TensorProto.INT8 and _types(model)["B"] == TensorProto.FLOAT
    assert "DynamicQuantizeLinear" in [n.op_type for n in model.value.graph.node]
    assert _error(model) < 0.05


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_only_is_smaller_and_near(bits: int, symmetric: bool) -> None:
    spec = QuantizeWeights(bits=bits, symmetric=symmetric, block=16)
    model = quantize_weights(_task().model, spec, _context())
    assert len(model.value.SerializeToString()) < len(_graph().SerializeToString()) * bits / 16
    assert _error(model) < (0.2 if bits == 4 else 0.02)


def test_four_bit_answers_exactly_as_its_own_unpacked_weights() -> None:
    """Weights that are on the 4-bit grid already must come through unchanged."""
    rng = np.random.default_rng(1)
    grid = rng.integers(-7, 8, size=(32, 64)).astype(np.float32)
    grid[::16] = 7.0  # every block reaches the end of its range, so that the step is 1
    graph = _graph()
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(grid, "A"))
    model = TaskModel("onnx", graph, INPUTS, OUTPUTS)
    spec = QuantizeWeights(bits=4, block=16, exclude=("second",))
    packed = quantize_weights(model, spec, _context())
    np.testing.assert_allclose(_run(packed)["y"], _run(model)["y"], rtol=1e-4, atol=0.05)


def test_the_scan_finds_the_layer_that_costs_most() -> None:
    spec = QuantizeStatic(rows=64, per_channel=False)
    costs = sensitivity(_task().model, spec, _context())
    assert [c.layer for c in costs] == ["first", "second"]  # its weights share a scale with a huge column
    assert costs[0].quality_cost > 3 * costs[1].quality_cost
    kept = quantize_static(
        _task().model, QuantizeStatic(rows=64, per_channel=False, keep_float=1), _context()
    )
    assert _types(kept)["A"] == TensorProto.FLOAT and "B_quantized" in _types(kept)
    assert kept.notes["sensitivity"][0]["layer"] == "first"


def test_slim_is_smaller_and_answers_the_same() -> None:
    model = quantize_static(_task().model, QuantizeStatic(rows=64), _context())
    small = model.becomes(slim(model.value))
    assert len(small.value.SerializeToString()) < len(model.value.SerializeToString())
    np.testing.assert_array_equal(_run(small)["y"], _run(model)["y"])
