"""The pass ``fine_tune``: a few more epochs of training, which win back what a pass before it cost."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from optimizers.passes.technique import PassSpec, Technique, within
from optimizers.passes.training import apply_masks, fit, zero_masks
from optimizers.task import PassContext, TaskModel


@dataclass(frozen=True)
class FineTune(PassSpec):
    """A few more epochs of training, e.g. to mend what a pass before it cost."""

    kind: ClassVar[str] = "fine_tune"
    epochs: int = 3
    learning_rate: float = 5e-4
    batch: int = 64

    def __post_init__(self) -> None:
        within(self, "epochs", 1, 1000)
        within(self, "learning_rate", 1e-9, 10)
        within(self, "batch", 1, 65_536)


def fine_tune(model: TaskModel, spec: FineTune, context: PassContext) -> TaskModel:
    """More epochs on the training data, on a copy of the module. Zeros stay zero (pruned weights)."""
    module = copy.deepcopy(model.value)
    keep = zero_masks(module)
    fit(
        module,
        context.task.train,
        epochs=spec.epochs,
        learning_rate=spec.learning_rate,
        batch=spec.batch,
        seed=context.seed,
        after_step=lambda step, steps: apply_masks(module, keep),
        progress=lambda epoch, loss: context.progress(f"epoch {epoch + 1}/{spec.epochs}, loss {loss:.4f}"),
    )
    return model.becomes(module)


TECHNIQUE = Technique(FineTune, ("torch",), fine_tune)
