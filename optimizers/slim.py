"""An ONNX file without what no runtime needs: for a small quantized model that is a tenth of its size."""

from __future__ import annotations

from typing import Any

import numpy as np


def slim(model: Any) -> Any:
    """A copy with short inner names and without documentation, inferred shapes and zero points of 0.

    Names of inputs and outputs stay. A missing zero point means 0 by the ONNX specification of
    DequantizeLinear; only those of constant int32 biases go: ONNX Runtime's integer kernels are
    fused where weights and activations have theirs. Graphs with subgraphs (If, Loop, Scan) keep
    their names, which may be used inside.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    copy.ClearField("doc_string")
    copy.ClearField("metadata_props")
    graph.ClearField("value_info")
    graph.ClearField("doc_string")
    for node in graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    _drop_zero_points(graph)
    _drop_unused(graph)
    if not any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute):
        _shorten(graph)
    return copy


def _drop_zero_points(graph: Any) -> None:
    from onnx import TensorProto, numpy_helper

    zero = {i.name for i in graph.initializer if not np.any(numpy_helper.to_array(i))}
    biases = {i.name for i in graph.initializer if i.data_type == TensorProto.INT32}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or len(node.input) < 3:
            continue
        if node.input[0] in biases and node.input[2] in zero:
            del node.input[2]


def _drop_unused(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input} | {out.name for out in graph.output}
    kept = [i for i in graph.initializer if i.name in used]
    graph.ClearField("initializer")
    graph.initializer.extend(kept)


def _shorten(graph: Any) -> None:
    fixed = {value.name for value in (*graph.input, *graph.output)}
    names: dict[str, str] = {"": ""}

    def short(name: str) -> str:
        if name in fixed:
            return name
        if name not in names:
            number = len(names)
            while f"_{number}" in fixed:
                number += 1
            names[name] = f"_{number}"
        return names[name]

    for init in graph.initializer:
        init.name = short(init.name)
    for node in graph.node:
        node.ClearField("name")
        for field in (node.input, node.output):
            for i, name in enumerate(field):
                field[i] = short(name)
