"""Small ONNX models and artifacts of them, made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from optimizers import artifact
from optimizers.artifact import Manifest
from optimizers.example_row import FILE, encode
from optimizers.profile import LatencyProfile, ProfilePoint
from optimizers.tensors import Tensors, TensorSpec

_KINDS = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64, "BYTES": TensorProto.STRING}


def graph(
    nodes: Sequence[Any],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    constants: Sequence[Any] = (),
) -> bytes:
    """A checked model of these nodes."""

    def value(spec: TensorSpec) -> Any:
        sizes = [f"{spec.name}{n}" if size < 0 else size for n, size in enumerate(spec.shape)]
        return helper.make_tensor_value_info(spec.name, _KINDS[spec.datatype], sizes)

    made = helper.make_graph(nodes, "tiny", [*map(value, inputs)], [*map(value, outputs)], list(constants))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def write(
    folder: Path,
    model: bytes,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    example: Tensors | None = None,
    row_ms: float = 1.0,
) -> Path:
    """The model as variant ``v`` in ``folder``, with an example row if there is one; gives the folder."""
    manifest = Manifest(
        model="tiny",
        variant="v",
        runtime="onnx",
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        metric="accuracy",
        quality={"accuracy": 1.0, "quality_drop": 0.0},
        profile=LatencyProfile((ProfilePoint(1, row_ms, row_ms),)),
        size_bytes=len(model),
        parameters=1,
        settings={"weights": "model.onnx"},
    )
    files: dict[str, bytes | Path] = {"model.onnx": model}
    if example is not None:
        files[FILE] = encode(example, inputs)
    artifact.write(folder, manifest, files)
    return folder


def lookup(rows: int) -> tuple[bytes, tuple[TensorSpec], tuple[TensorSpec]]:
    """A table of ``rows`` numbers, 10 and up, by index: any other index makes the runtime fail."""
    inputs, outputs = (TensorSpec("index", "INT64", (-1,)),), (TensorSpec("value", "FP32", (-1,)),)
    table = helper.make_tensor("table", TensorProto.FLOAT, [rows], [10.0 + n for n in range(rows)])
    node = helper.make_node("Gather", ["table", "index"], ["value"])
    return graph([node], inputs, outputs, [table]), inputs, outputs
