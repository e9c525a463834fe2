"""The pass ``quantize_weights``: weights stored as 4-bit or 8-bit integers, arithmetic in float."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from optimizers.formats.graphs import named_nodes
from optimizers.passes.integer_weights import eight_bit, four_bit
from optimizers.passes.quantizers import matching_nodes
from optimizers.passes.technique import PassSpec, Technique, one_of
from optimizers.task import PassContext, TaskModel


@dataclass(frozen=True)
class QuantizeWeights(PassSpec):
    """Weights only: stored as ``bits`` bit integers with a scale, computed with in float.

    4 bits are for matrix products with constant weights, in blocks of ``block`` values, with the
    runtime's own kernel (MatMulNBits); 8 bits for any weight, unpacked as the model is loaded: a
    smaller file at the speed of float.
    """

    kind: ClassVar[str] = "quantize_weights"
    bits: int = 8
    symmetric: bool = True
    per_channel: bool = True
    block: int = 32
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        one_of(self, "bits", 4, 8)
        one_of(self, "block", 16, 32, 64, 128, 256)


def quantize_weights(model: TaskModel, spec: QuantizeWeights, context: PassContext) -> TaskModel:
    """Integer weights, float arithmetic."""
    graph = named_nodes(model.value)
    excluded = set(matching_nodes(graph, spec.exclude))
    if spec.bits == 4:
        return model.becomes(four_bit(graph, spec.block, spec.symmetric, excluded))
    packed = eight_bit(graph, spec.per_channel, spec.symmetric, excluded)
    # ONNX Runtime would otherwise unpack the weights anew in every run.
    return replace(model.becomes(packed), settings={**model.settings, "fold_weights": True})


TECHNIQUE = Technique(QuantizeWeights, ("onnx",), quantize_weights)
