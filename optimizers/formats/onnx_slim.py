"""An ONNX file without what no runtime needs: for a small quantized model that is a tenth of its size.

The kept tools (onnxslim, onnxsim, onnxoptimizer) fold constants and fuse operators, which runtimes do
themselves as they load; none of them shortens names or knows which zero points may go.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

import numpy as np

from optimizers.formats import graphs


def slim(model: Any) -> Any:
    """A copy with short inner names and without documentation, inferred shapes and zero points of 0.

    Names of inputs and outputs stay. A missing zero point means 0 by the ONNX specification of
    DequantizeLinear; only those of constant int32 biases go: ONNX Runtime's integer kernels are
    fused where weights and activations have theirs.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ClearField("doc_string")
    copy.ClearField("metadata_props")
    for graph in graphs.walk(copy.graph):
        graph.ClearField("value_info")
        graph.ClearField("doc_string")
        for node in graph.node:
            for field in ("name", "doc_string", "metadata_props"):
                node.ClearField(field)
    _drop_zero_points(copy.graph, {})
    graphs.drop_unused(copy.graph)
    _shorten(copy.graph)
    return copy


def _drop_zero_points(graph: Any, outer: Mapping[str, Any]) -> None:
    from onnx import TensorProto, numpy_helper

    own = graphs.defined(graph)
    weights = {name: init for name, init in outer.items() if name not in own}
    weights |= {init.name: init for init in graph.initializer}
    for node in graph.node:
        for body in graphs.bodies(node):
            _drop_zero_points(body, weights)
        if node.op_type != "DequantizeLinear" or len(node.input) < 3:
            continue
        bias, zero = weights.get(node.input[0]), weights.get(node.input[2])
        if bias is None or zero is None or bias.data_type != TensorProto.INT32:
            continue
        if not np.any(numpy_helper.to_array(zero)):
            del node.input[2]


def _shorten(graph: Any) -> None:
    fixed = {value.name for value in (*graph.input, *graph.output)}
    short = (name for number in count() if (name := f"_{number}") not in fixed)

    def own(each: Any) -> dict[str, str]:
        names = graphs.defined(each) - (fixed if each is graph else set())
        return {name: next(short) for name in sorted(names)}

    graphs.rewrite(graph, own)
