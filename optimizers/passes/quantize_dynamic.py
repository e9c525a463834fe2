"""The pass ``quantize_dynamic``: int8 weights, activations quantized batch by batch (ONNX Runtime)."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from optimizers.formats.graphs import named_nodes
from optimizers.passes.quantizers import check_has_integers, matching_nodes, quiet
from optimizers.passes.technique import PassSpec, Technique
from optimizers.task import PassContext, TaskModel


@dataclass(frozen=True)
class QuantizeDynamic(PassSpec):
    """Partial quantization: int8 weights, activations quantized as they come (ONNX Runtime).

    ``ops`` are the ONNX operators to quantize; only those whose weight is a constant are. No
    calibration data is needed. Fastest on matrix products; convolutions usually lose time by it.
    """

    kind: ClassVar[str] = "quantize_dynamic"
    ops: tuple[str, ...] = ("MatMul", "Gemm")
    per_channel: bool = True
    reduce_range: bool = False
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.ops:
            raise self.refusal("ops", "name at least one ONNX operator")


def quantize_dynamic(model: TaskModel, spec: QuantizeDynamic, context: PassContext) -> TaskModel:
    """int8 weights where they are constants; activations get their scale batch by batch.

    ONNX Runtime's quantizer first splits every Gemm into a MatMul and an Add.
    """
    import onnx
    from onnxruntime import quantization

    graph = named_nodes(model.value)
    excluded = matching_nodes(graph, spec.exclude)
    with tempfile.TemporaryDirectory() as folder, quiet():
        target = Path(folder) / "quantized.onnx"
        quantization.quantize_dynamic(
            graph,
            str(target),
            op_types_to_quantize=list(spec.ops),
            per_channel=spec.per_channel,
            reduce_range=spec.reduce_range,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=[
                *excluded,
                *(f"{name}_MatMul" for name in excluded),
            ],  # of a Gemm that was split
            extra_options={"MatMulConstBOnly": True, "EnableSubgraph": True},
        )
        quantized = model.becomes(onnx.load(str(target)))
    check_has_integers(quantized)
    return quantized


TECHNIQUE = Technique(QuantizeDynamic, ("onnx",), quantize_dynamic)
