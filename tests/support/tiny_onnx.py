"""Small ONNX models and artifacts of them, made on the spot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from optimizers import artifact
from optimizers.artifact import Manifest
from optimizers.profile import LatencyProfile, ProfilePoint
from optimizers.runtimes.example_row import FILE, encode
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
    *,
    files: Mapping[str, bytes] | None = None,
    preprocess: Mapping[str, str | int] | None = None,
    settings: Mapping[str, str | int] | None = None,
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
        profile=LatencyProfile((ProfilePoint(1, 1.0, 1.0), ProfilePoint(64, 2.0, 2.0))),
        size_bytes=len(model),
        parameters=1,
        settings={"weights": "model.onnx", **(settings or {})},
        preprocess=dict(preprocess or {}),
    )
    kept = {} if example is None else {FILE: encode(example, inputs)}
    artifact.write(folder, manifest, {"model.onnx": model, **(files or {}), **kept})
    return folder


def write_text(
    folder: Path,
    nodes: Sequence[Any],
    output: TensorSpec,
    constants: Sequence[Any] = (),
    example: Tensors | None = None,
    **settings: str | int,
) -> Path:
    """A network behind a tokenizer that makes 5 of ``cat``, 6 of ``dog`` and no token of an empty text."""
    tokenizer = Tokenizer(WordLevel({"cat": 5, "dog": 6, "?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    return write(
        folder,
        graph(nodes, (TensorSpec("input_ids", "INT64", (-1, -1)),), (output,), constants),
        (TensorSpec("word", "BYTES", (-1,)),),
        (output,),
        example,
        files={"tokenizer.json": tokenizer.to_str().encode()},
        preprocess={"kind": "tokenizer", "file": "tokenizer.json", "input": "word", "max_tokens": 8},
        settings=settings,
    )


def lookup(rows: int) -> tuple[bytes, tuple[TensorSpec], tuple[TensorSpec]]:
    """A table of ``rows`` numbers, 10 and up, by index: any other index makes the runtime fail."""
    inputs, outputs = (TensorSpec("index", "INT64", (-1,)),), (TensorSpec("value", "FP32", (-1,)),)
    table = helper.make_tensor("table", TensorProto.FLOAT, [rows], [10.0 + n for n in range(rows)])
    node = helper.make_node("Gather", ["table", "index"], ["value"])
    return graph([node], inputs, outputs, [table]), inputs, outputs
