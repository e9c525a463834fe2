"""Half-width floats: half the bytes, and twice the speed where the processor computes in them.

torch modules are cast whole. ONNX graphs are cast to float16 by ONNX Runtime's own tool (bfloat16
has no CPU kernels there). OpenVINO keeps its graph and is told the precision to compute in.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from optimizers.formats.errors import PassError
from optimizers.formats.forms import convert
from optimizers.passes.technique import PassSpec, Technique, one_of
from optimizers.task import PassContext, TaskModel


@dataclass(frozen=True)
class Cast(PassSpec):
    """Half-width floats: ``bfloat16`` (torch, OpenVINO) or ``float16`` (ONNX, stored; torch on CUDA)."""

    kind: ClassVar[str] = "cast"
    to: str = "bfloat16"

    def __post_init__(self) -> None:
        one_of(self, "to", "bfloat16", "float16")


def cast(model: TaskModel, spec: Cast, context: PassContext) -> TaskModel:
    """The model in ``spec.to``, for the runtime of its variant: each has its own way to half width.

    Inputs and outputs keep the types that their specs say.
    """
    runtime = context.runtime or "onnx"
    if runtime in ("onnx", "openvino"):
        model = convert(model, runtime, context.task)
    if model.form == "torch":
        return model.becomes(half_module(model.value, spec.to))
    if model.form == "openvino":
        if spec.to != "bfloat16":
            raise PassError("OpenVINO computes in bfloat16 on CPUs, not float16: write to: bfloat16")
        return replace(model, settings={**model.settings, "precision": "bf16"})
    if spec.to != "float16":
        raise PassError(
            "ONNX Runtime has no bfloat16 kernels on CPUs: write to: float16, or name runtime: torch "
            "or runtime: openvino"
        )
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    graph = type(model.value)()
    graph.CopyFrom(model.value)
    # Some take only float32, those of trees and linear models among them; the two that decide stay exact.
    kept = [*DEFAULT_OP_BLOCK_LIST, "Softmax", "ArgMax"]
    return model.becomes(convert_float_to_float16(graph, keep_io_types=True, op_block_list=kept))


def half_module(module: Any, to: str) -> Any:
    """A copy of a torch module with ``bfloat16`` or ``float16`` weights and arithmetic.

    Float inputs are cast to the weights' type, and outputs back to float32, where the model is
    deployed (:func:`optimizers.formats.convert.deployed`).
    """
    import torch

    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}[to]
    return copy.deepcopy(module).to(dtype)


TECHNIQUE = Technique(Cast, ("torch", "onnx", "openvino"), cast)
