"""The pass ``prune``: weights set to zero, at once or gradually with training between.

The shapes stay, so a dense runtime is as slow as before; what it gains is a file that compresses
and a pattern that sparse kernels run. For speed on any runtime remove channels instead
(:mod:`optimizers.passes.prune_channels`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from optimizers.passes import prune_masks
from optimizers.passes.importance import prunable, score
from optimizers.passes.technique import PassSpec, Technique, check_training, one_of, within
from optimizers.passes.training import apply_masks, fit
from optimizers.task import PassContext, TaskModel
from optimizers.tensors import Array


@dataclass(frozen=True)
class Prune(PassSpec):
    """Weights of least importance set to zero: ``sparsity`` of them, or all but ``n`` of every ``m``.

    ``importance`` is ``l1``, ``l2`` (size of the weight) or ``gradient`` (first-order Taylor over
    ``rows`` training rows). ``scope`` ranks weights of all layers together (``global``) or each
    ``layer``'s by itself; N:M and blocks are always per layer. With ``epochs`` the model is trained
    on; ``schedule`` says whether the sparsity is there from the start (``constant``) or grows over
    ``updates`` steps (``polynomial``).
    """

    kind: ClassVar[str] = "prune"
    sparsity: float = 0.8
    importance: str = "l1"
    pattern: str = "unstructured"
    scope: str = "global"
    n: int = 2
    m: int = 4
    block: tuple[int, int] = (4, 4)
    schedule: str = "constant"
    updates: int = 10
    epochs: int = 0
    learning_rate: float = 1e-3
    batch: int = 64
    rows: int = 512
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        one_of(self, "importance", "l1", "l2", "gradient")
        one_of(self, "pattern", "unstructured", "n:m", "block")
        one_of(self, "scope", "global", "layer")
        one_of(self, "schedule", "constant", "polynomial")
        within(self, "sparsity", 0, 0.999)
        within(self, "m", 2, 64)
        within(self, "n", 1, self.m - 1)
        within(self, "updates", 1, 1000)
        within(self, "rows", 1, 1_000_000)
        check_training(self, least_epochs=0)
        if len(self.block) != 2 or min(self.block) < 1:
            raise self.refusal("block", f"two whole numbers from 1, not {self.block!r}")
        if self.schedule == "polynomial" and not self.epochs:
            raise self.refusal("schedule", "polynomial grows while training; give epochs too")


def prune(model: TaskModel, spec: Prune, context: PassContext) -> TaskModel:
    """``model`` with the least important weights at zero; the notes list each layer's sparsity.

    With ``spec.epochs`` the masks are drawn ``spec.updates`` times, evenly over the first half of
    training, from the weights as they are then; what is zero stays zero.
    """
    module = copy.deepcopy(model.value)
    targets = prunable(module, spec.exclude)
    masks: dict[str, Any] = {}

    def draw(update: int, updates: int) -> None:
        final = 1 - spec.n / spec.m if spec.pattern == "n:m" else spec.sparsity
        wanted = prune_masks.sparsity_at(update, updates, final, spec.schedule)
        scores = score(module, targets, spec.importance, context, spec.rows)
        masks.update(_tensors(choose(scores, spec, wanted)))
        apply_masks(module, masks)
        context.progress(f"{wanted:.0%} of the weights at zero")

    if not spec.epochs:
        draw(1, 1)
        return _done(model, module, targets)

    def before_step(step: int, steps: int) -> None:
        updates = min(spec.updates, steps)
        every = max(steps // (2 * updates), 1)
        if step % every == 0 and step // every < updates:
            draw(step // every + 1, updates)

    fit(
        module,
        context.task.train,
        epochs=spec.epochs,
        learning_rate=spec.learning_rate,
        batch=spec.batch,
        seed=context.seed,
        before_step=before_step,
        after_step=lambda step, steps: apply_masks(module, masks),
        progress=lambda epoch, loss: context.progress(f"epoch {epoch + 1}/{spec.epochs}, loss {loss:.4f}"),
    )
    return _done(model, module, targets)


def choose(scores: Mapping[str, Array], spec: Prune, sparsity: float) -> dict[str, Array]:
    """A mask per weight for the spec's pattern. A layer that N:M does not fit (its inputs are no
    multiple of M) has no mask and stays dense."""
    if spec.pattern == "n:m":
        n = max(spec.n, round(spec.m * (1 - sparsity)))  # gradually: a looser N first
        fits = {name: s for name, s in scores.items() if s.shape[1] % spec.m == 0 and n < spec.m}
        return {
            name: prune_masks.from_matrix(prune_masks.n_of_m(prune_masks.as_matrix(s), n, spec.m), s.shape)
            for name, s in fits.items()
        }
    if spec.pattern == "block":
        return {
            name: prune_masks.from_matrix(
                prune_masks.blocks(prune_masks.as_matrix(s), sparsity, spec.block), s.shape
            )
            for name, s in scores.items()
        }
    return prune_masks.unstructured(scores, sparsity, everywhere=spec.scope == "global")


def _tensors(masks: Mapping[str, Array]) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(mask)) for name, mask in masks.items()}


def _done(model: TaskModel, module: Any, targets: Mapping[str, Any]) -> TaskModel:
    zeros = {name: float((weight == 0).double().mean()) for name, weight in targets.items()}
    every = sum(weight.numel() for weight in targets.values())
    removed = sum(int((weight == 0).sum()) for weight in targets.values())
    return model.becomes(module.eval(), structure={"zeros": zeros}, sparsity=removed / every)


TECHNIQUE = Technique(Prune, ("torch",), prune)
