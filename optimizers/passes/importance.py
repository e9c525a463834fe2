"""How much each weight of a torch module matters: by its size, or by what the loss says of it.

By **weight** (``l1``: ``|w|``, ``l2``: ``w^2``) nothing but the module is needed. By **gradient** it
is the first-order Taylor term ``|w * dL/dw|``, summed over real rows: about how much the loss
would change if the weight went (Molchanov et al., "Importance estimation for neural network
pruning", CVPR 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from optimizers.formats.answers import logits
from optimizers.formats.errors import PassError
from optimizers.passes.training import cross_entropy
from optimizers.task import PassContext
from optimizers.tensors import Array

#: Rows per backward pass. In a larger batch rows with opposite gradients cancel each other before the
#: absolute value is taken: the larger the batch, the more accuracy was lost at equal sparsity.
_GRADIENT_BATCH = 1


def prunable(module: Any, exclude: tuple[str, ...] = ()) -> dict[str, Any]:
    """The weights of linear and convolution layers by name, but for layers ``exclude`` names (patterns)."""
    from fnmatch import fnmatchcase

    import torch

    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    found = {
        f"{name}.weight" if name else "weight": layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, kinds) and not any(fnmatchcase(name, pattern) for pattern in exclude)
    }
    if not found:
        raise PassError(f"no linear or convolution layer is left to prune (exclude: {list(exclude)})")
    return found


def score(
    module: Any, weights: Mapping[str, Any], how: str, context: PassContext, rows: int
) -> dict[str, Array]:
    """Importance of each of ``weights`` (parameters of ``module``), float64 of its shape.

    ``how`` is ``l1``, ``l2`` or ``gradient``; the last takes ``rows`` training rows with targets,
    and raises :class:`PassError` where there are none.
    """
    if how == "gradient":
        return gradients(module, weights, context, rows)
    power = {"l1": 1, "l2": 2}[how]
    return {name: np.abs(_numpy(weight)) ** power for name, weight in weights.items()}


def gradients(module: Any, weights: Mapping[str, Any], context: PassContext, rows: int) -> dict[str, Array]:
    """``|w * dL/dw|`` of each weight, summed over single rows of the training data, in eval mode."""
    import torch

    task = context.task
    if task.train.targets is None:
        raise PassError("importance by gradient needs targets, and the training data has none; use l1 or l2")
    spread = np.linspace(0, len(task.train) - 1, min(rows, len(task.train))).astype(np.int64)
    data = task.train.select(spread)
    total = {name: np.zeros(tuple(weight.shape)) for name, weight in weights.items()}
    training = module.training
    module.eval()
    for part in data.batches(_GRADIENT_BATCH):
        inputs = task.network_inputs(part.inputs)
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[spec.name])) for spec in task.model.inputs]
        loss = cross_entropy(logits(module(*tensors)), torch.from_numpy(np.ascontiguousarray(part.targets)))
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for (name, weight), gradient in zip(weights.items(), found, strict=True):
            if gradient is not None:
                total[name] += np.abs(_numpy(weight) * _numpy(gradient))
    module.train(training)
    return total


def _numpy(tensor: Any) -> Array:
    array: Array = tensor.detach().double().cpu().numpy()
    return array
