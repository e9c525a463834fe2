"""The one training loop: examples train with it, and passes fine-tune with it.

Plain torch (AdamW, one-cycle learning rate), seeded, with a hook per step for passes that change
the module while it learns (gradual pruning, rounding).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from optimizers.formats.answers import logits
from optimizers.formats.errors import PassError
from optimizers.task import Dataset

Loss = Callable[[Any, Any], Any]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run torch on ``count`` threads for a while.

    Small networks are slower on several: their threads wait for each other, all the more on a
    machine that has other work.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cross_entropy(logits: Any, targets: Any) -> Any:
    """Mean cross-entropy of logits [rows, classes] with class numbers INT64 [rows]."""
    import torch

    return torch.nn.functional.cross_entropy(logits, targets)


def fit(
    module: Any,
    data: Dataset,
    *,
    epochs: int,
    learning_rate: float,
    batch: int = 64,
    seed: int = 0,
    loss: Loss = cross_entropy,
    weight_decay: float = 1e-4,
    augment: Callable[[list[Any], Any], list[Any]] | None = None,
    before_step: Callable[[int, int], None] | None = None,
    after_step: Callable[[int, int], None] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Any:
    """Train ``module`` in place on ``data`` and give it back in eval mode.

    ``module`` takes the inputs in their order in ``data`` and gives the logits that ``loss`` compares
    with the targets (see :func:`optimizers.formats.answers.logits`). ``before_step`` and ``after_step`` get
    ``(step, steps)``; ``augment`` gets a batch's inputs and a ``torch.Generator``; ``progress`` gets
    ``(epoch, mean loss)``. Equal seeds give equal modules on the same machine and thread count.
    """
    import torch

    if data.targets is None:
        raise PassError("training needs targets, and the training data has none")
    inputs = [torch.from_numpy(np.ascontiguousarray(a)) for a in data.inputs.values()]
    targets = torch.from_numpy(np.ascontiguousarray(data.targets))
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=weight_decay)
    per_epoch = max(len(data) // batch, 1)
    steps = epochs * per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1)
    module.train()
    step = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout and the like draw from the global generator
        for epoch in range(epochs):
            order = torch.randperm(len(data), generator=generator)
            total = 0.0
            for k in range(per_epoch):
                rows = order[k * batch : (k + 1) * batch]
                chosen = [tensor[rows] for tensor in inputs]
                if augment:
                    chosen = augment(chosen, generator)
                if before_step:
                    before_step(step, steps)
                optimizer.zero_grad(set_to_none=True)
                value = loss(logits(module(*chosen)), targets[rows])
                value.backward()
                optimizer.step()
                schedule.step()
                if after_step:
                    after_step(step, steps)
                total += float(value.detach())
                step += 1
            if progress:
                progress(epoch, total / per_epoch)
    return module.eval()


def zero_masks(module: Any) -> dict[str, Any]:
    """For each weight (two or more axes) that holds exact zeros: where it is not zero."""
    return {
        name: (weight.detach() != 0)
        for name, weight in module.named_parameters()
        if weight.dim() > 1 and bool((weight.detach() == 0).any())
    }


def apply_masks(module: Any, masks: dict[str, Any]) -> None:
    """Set the weights that ``masks`` leave out to zero, in place."""
    import torch

    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name in masks:
                weight.mul_(masks[name])
