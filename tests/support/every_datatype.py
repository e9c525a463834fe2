"""A model with every datatype of the protocol in and out, as a real ONNX artifact.

Each input ``x`` of shape [-1, 2] comes back as ``x_out`` with its two columns exchanged: no echo of a
request passes for its answer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from optimizers import artifact
from optimizers.artifact import Manifest
from optimizers.profile import LatencyProfile, ProfilePoint
from optimizers.tensors import DTYPES, Array, Tensors, TensorSpec

WIDTH = 2
#: BF16 is float32 in memory, here and in the model.
_ELEMENTS = {
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "UINT16": "UINT16",
    "UINT32": "UINT32",
    "UINT64": "UINT64",
    "INT8": "INT8",
    "INT16": "INT16",
    "INT32": "INT32",
    "INT64": "INT64",
    "FP16": "FLOAT16",
    "BF16": "FLOAT",
    "FP32": "FLOAT",
    "FP64": "DOUBLE",
    "BYTES": "STRING",
}


def write(folder: Path) -> None:
    """The model, with one variant ``plain``, under ``folder``."""
    manifest = Manifest(
        model="every",
        variant="plain",
        runtime="onnx",
        inputs=tuple(TensorSpec(name.lower(), name, (-1, WIDTH)) for name in DTYPES),
        outputs=tuple(TensorSpec(f"{name.lower()}_out", name, (-1, WIDTH)) for name in DTYPES),
        metric="accuracy",
        quality={"accuracy": 1.0, "quality_drop": 0.0},
        profile=LatencyProfile((ProfilePoint(1, 0.2, 0.5), ProfilePoint(64, 1.0, 2.0))),
        size_bytes=1_000,
        parameters=1,
        settings={"weights": "model.onnx"},
    )
    artifact.write(folder, manifest, {"model.onnx": _graph()})


def _graph() -> bytes:
    from onnx import TensorProto, checker, helper  # heavy, and not for those who want samples only

    nodes, inputs, outputs = [], [], []
    for name in DTYPES:
        before, after, element = name.lower(), f"{name.lower()}_out", getattr(TensorProto, _ELEMENTS[name])
        nodes.append(helper.make_node("Gather", [before, "swapped"], [after], axis=1))
        inputs.append(helper.make_tensor_value_info(before, element, ["rows", WIDTH]))
        outputs.append(helper.make_tensor_value_info(after, element, ["rows", WIDTH]))
    swapped = helper.make_tensor("swapped", TensorProto.INT64, [WIDTH], [1, 0])
    graph = helper.make_graph(nodes, "every", inputs, outputs, [swapped])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return bytes(model.SerializeToString())


def sample(rows: int, seed: int = 0) -> Tensors:
    """An input for every datatype, with its smallest and largest values in the first row."""
    rng = np.random.default_rng(seed)
    return {name.lower(): _sample(name, rows, rng) for name in DTYPES}


def _sample(datatype: str, rows: int, rng: np.random.Generator) -> Array:
    dtype = DTYPES[datatype]
    if datatype == "BYTES":
        array = np.empty((rows, WIDTH), dtype=object)
        array.ravel()[:] = [f"row {i} \N{SNOWMAN}".encode() for i in range(rows * WIDTH)]
        array[0, 0] = b""
        return array
    if datatype == "BOOL":
        return rng.integers(0, 2, (rows, WIDTH)).astype(dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        array = rng.integers(limits.min, limits.max, (rows, WIDTH), dtype=dtype, endpoint=True)
        array[0] = limits.min, limits.max
        return array
    # Halves are exact in each of the float types.
    array = (rng.integers(-128, 128, (rows, WIDTH)) / 2).astype(dtype)
    array[0] = -64.5, 0.5
    return array


def swapped(array: Array) -> Array:
    """What the model makes of an input."""
    return array[:, ::-1]
