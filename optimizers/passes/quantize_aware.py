"""Quantization-aware fine-tuning: the forward pass rounds, the weights learn to bear it.

torch's own fake-quantization operators, whose backward pass is the straight-through estimator
(Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
inference", CVPR 2018), are hooked onto convolutions and linear layers. torch's module-swapping
workflow is deprecated and its successor is a further package; the operators themselves stay.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

from optimizers.formats.errors import PassError
from optimizers.passes.technique import PassSpec, Technique, within
from optimizers.passes.training import apply_masks, fit, zero_masks
from optimizers.task import PassContext, TaskModel

#: Weight of the present batch in the running range of an activation.
_MOMENTUM = 0.05


@dataclass(frozen=True)
class QuantizeAware(PassSpec):
    """Fine-tuning with rounding in the forward pass, so that the weights learn to bear it.

    The result is still float: let ``quantize_static`` follow. Learning uses the straight-through
    estimator: rounding counts as the identity in the backward pass.
    """

    kind: ClassVar[str] = "quantize_aware"
    epochs: int = 3
    learning_rate: float = 1e-4
    batch: int = 64
    weight_bits: int = 8
    activation_bits: int = 8
    per_channel: bool = True

    def __post_init__(self) -> None:
        within(self, "epochs", 1, 1000)
        within(self, "learning_rate", 1e-9, 10)
        within(self, "batch", 1, 65_536)
        within(self, "weight_bits", 2, 8)
        within(self, "activation_bits", 2, 8)


def quantize_aware(model: TaskModel, spec: QuantizeAware, context: PassContext) -> TaskModel:
    """A float module, fine-tuned so that rounding its weights and activations costs less.

    Zeros stay zero (pruned weights). Raises :class:`PassError` where there is nothing to round.
    """
    module = copy.deepcopy(model.value)
    layers = quantizable(module)
    if not layers:
        raise PassError("the module has no convolution and no linear layer")
    masks = zero_masks(module)
    roundings = [_Rounding(layer, spec) for layer in layers]
    try:
        fit(
            module,
            context.task.train,
            epochs=spec.epochs,
            learning_rate=spec.learning_rate,
            batch=spec.batch,
            seed=context.seed,
            after_step=lambda step, steps: apply_masks(module, masks),
            progress=lambda epoch, loss: context.progress(
                f"epoch {epoch + 1}/{spec.epochs}, loss {loss:.4f}"
            ),
        )
    finally:
        for rounding in roundings:
            rounding.remove()
    return model.becomes(module.eval())


def quantizable(module: Any) -> list[Any]:
    """The module's convolutions and linear layers, in order."""
    import torch

    kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.Linear)
    return [layer for layer in module.modules() if isinstance(layer, kinds)]


class _Rounding:
    """Rounds one layer's weight (per channel, symmetric) and input (per tensor, affine) while it trains."""

    def __init__(self, layer: Any, spec: QuantizeAware) -> None:
        import torch.nn.utils.parametrize as parametrize

        self._layer, self._top = layer, 2**spec.activation_bits - 1
        self._low: Any = None
        self._high: Any = None
        parametrize.register_parametrization(layer, "weight", _rounded_weight(spec), unsafe=True)
        self._hook = layer.register_forward_pre_hook(self._round_input)

    def _round_input(self, layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        import torch

        x = inputs[0]
        low, high = x.detach().min().clamp(max=0.0), x.detach().max().clamp(min=0.0)
        if self._low is None:
            self._low, self._high = low, high
        else:
            self._low = torch.lerp(self._low, low, _MOMENTUM)
            self._high = torch.lerp(self._high, high, _MOMENTUM)
        scale = ((self._high - self._low) / self._top).clamp(min=1e-8)
        zero = torch.round(-self._low / scale).clamp(0, self._top).to(torch.int32)
        return (torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, self._top), *inputs[1:])

    def remove(self) -> None:
        """The layer as it was, with the float weight that it learned."""
        import torch.nn.utils.parametrize as parametrize

        self._hook.remove()
        parametrize.remove_parametrizations(self._layer, "weight", leave_parametrized=False)


def _rounded_weight(spec: QuantizeAware) -> Any:
    import torch

    top = 2 ** (spec.weight_bits - 1) - 1

    class RoundedWeight(torch.nn.Module):
        def forward(self, weight: Any) -> Any:
            if not spec.per_channel:
                scale = (weight.detach().abs().max() / top).clamp(min=1e-8)
                zero = torch.zeros_like(scale, dtype=torch.int32)
                return torch.fake_quantize_per_tensor_affine(weight, scale, zero, -top, top)
            scales = (weight.detach().abs().flatten(1).amax(dim=1) / top).clamp(min=1e-8)
            zeros = torch.zeros_like(scales, dtype=torch.int32)
            return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -top, top)

    return RoundedWeight()


TECHNIQUE = Technique(QuantizeAware, ("torch",), quantize_aware)
