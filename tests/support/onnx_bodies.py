"""ONNX models whose weights are used in the bodies of If, Loop and Scan, each with its own difficulty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from optimizers.task import Dataset, Metric, Task, TaskModel
from optimizers.tensors import TensorSpec

WIDTH = 16
INPUTS = (TensorSpec("x", "FP32", (-1, WIDTH)),)
OUTPUTS = (TensorSpec("y", "FP32", (-1, WIDTH)),)
ROWS = np.random.default_rng(7).normal(size=(64, WIDTH)).astype(np.float32)
#: Rows whose first value is below 0 on average, so that an If on the mean takes its other branch.
OTHER_ROWS = ROWS - 3.0


def _weight(seed: int, *shape: int) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).normal(size=shape) / 4).astype(np.float32)


def _value(
    name: str, shape: Sequence[int | str | None], kind: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _model(
    nodes: list[onnx.NodeProto], weights: dict[str, NDArray[np.generic]], head: tuple[str, str] = ("x", "y")
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "outer",
        [_value(head[0], ["rows", WIDTH])],
        [_value(head[1], ["rows", WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def branches() -> onnx.ModelProto:
    """``x @ A + b`` where the mean is above 0, else ``x @ B``; A and b are outside, B is inside."""
    then = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "A"], ["inner"], name="then_product"),
            helper.make_node("Add", ["inner", "b"], ["taken"], name="then_sum"),
        ],
        "then",
        [],
        [_value("taken", ["rows", WIDTH])],
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "B"], ["given"], name="else_product")],
        "else",
        [],
        [_value("given", ["rows", WIDTH])],
        [numpy_helper.from_array(_weight(2, WIDTH, WIDTH), "B")],
    )
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["mean", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=then, else_branch=other),
    ]
    weights = {"A": _weight(1, WIDTH, WIDTH), "b": _weight(3, WIDTH), "zero": np.array(0, dtype=np.float32)}
    return _model(nodes, weights)


def loop() -> onnx.ModelProto:
    """``x @ A`` three times over; the body's own state is called like the outer graph's inner result."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "A"], ["next"], name="product"),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [
            _value("step", [], TensorProto.INT64),
            _value("go", [], TensorProto.BOOL),
            _value("state", ["rows", WIDTH]),
        ],
        [_value("go_on", [], TensorProto.BOOL), _value("next", ["rows", WIDTH])],
    )
    nodes = [
        helper.make_node("Identity", ["x"], ["start"]),
        helper.make_node("Loop", ["times", "always", "start"], ["y"], body=body),
    ]
    weights = {"A": _weight(4, WIDTH, WIDTH), "times": np.array(3), "always": np.array(True)}
    return _model(nodes, weights)


def scan() -> onnx.ModelProto:
    """Row by row: the row times C, where C is used in a branch inside the body of the Scan."""
    then = helper.make_graph(
        [helper.make_node("Gemm", ["line", "C", "c"], ["with_sum"], name="deep")],
        "then",
        [],
        [_value("with_sum", [1, WIDTH])],
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["line", "C"], ["without"], name="deep_other")],
        "else",
        [],
        [_value("without", [1, WIDTH])],
    )
    body = helper.make_graph(
        [
            helper.make_node("Reshape", ["row", "one_row"], ["line"]),
            helper.make_node("ReduceMax", ["line"], ["largest"], keepdims=0),
            helper.make_node("Greater", ["largest", "limit"], ["large"]),
            helper.make_node("If", ["large"], ["answer"], then_branch=then, else_branch=other),
            helper.make_node("Reshape", ["answer", "flat"], ["out"]),
        ],
        "body",
        [_value("row", [WIDTH])],
        [_value("out", [WIDTH])],
        [
            numpy_helper.from_array(np.array([1, WIDTH]), "one_row"),
            numpy_helper.from_array(np.array([WIDTH]), "flat"),
        ],
    )
    nodes = [helper.make_node("Scan", ["x"], ["y"], body=body, num_scan_inputs=1)]
    weights = {
        "C": _weight(5, WIDTH, WIDTH),
        "c": _weight(6, WIDTH),
        "limit": np.array(1.5, dtype=np.float32),
    }
    return _model(nodes, weights)


MODELS = {"If": branches, "Loop": loop, "Scan": scan}


def task(name: str) -> Task:
    """A task around one of :data:`MODELS`, judged by how close the answers stay to the original's."""
    from optimizers.formats.in_memory import predictor

    model = TaskModel("onnx", MODELS[name](), INPUTS, OUTPUTS)
    exact = predictor(model, None)({"x": ROWS})["y"]  # type: ignore[arg-type]

    def closeness(predict: object, data: Dataset) -> float:
        return -float(np.mean(np.abs(predict(data.inputs)["y"] - exact)))  # type: ignore[operator]

    data = Dataset({"x": ROWS})
    return Task(
        name=name,
        model=model,
        train=data,
        validation=data,
        test=data,
        metric=Metric("closeness", closeness),
        fidelity=lambda ours, theirs: 1.0 - float(np.mean(np.abs(ours["y"] - theirs["y"]))),
        digest=name,
    )
