"""The pass ``distill_tree``: a decision tree that answers like the original, and can be read.

The fitting: :mod:`optimizers.passes.tree_fitting`. The student takes and gives
the same tensors as its teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from optimizers.passes.lesson import lesson
from optimizers.passes.technique import PassSpec, Technique, within
from optimizers.passes.tree_fitting import to_tree
from optimizers.task import PassContext, TaskModel


@dataclass(frozen=True)
class DistillTree(PassSpec):
    """A decision tree fitted to the original's answers on ``rows`` training rows and ``resampled`` more.

    More resampled rows bring the tree nearer to its teacher and make it larger; ``max_depth``,
    ``max_leaves`` and ``min_leaf`` (training rows per leaf) bound it.
    """

    kind: ClassVar[str] = "distill_tree"
    rows: int = 50_000
    resampled: int = 10_000
    max_depth: int | None = None
    max_leaves: int | None = None
    min_leaf: int = 1

    def __post_init__(self) -> None:
        within(self, "rows", 1, 10_000_000)
        within(self, "resampled", 0, 10_000_000)
        within(self, "min_leaf", 1, 1_000_000)
        if self.max_depth is not None:
            within(self, "max_depth", 1, 64)
        if self.max_leaves is not None:
            within(self, "max_leaves", 2, 1_000_000)


def distill_tree(model: TaskModel, spec: DistillTree, context: PassContext) -> TaskModel:
    """``model``'s teacher as a decision tree. Raises :class:`PassError` for anything but a classifier."""
    rows, teacher, features, classes = lesson(model, spec.rows, context)
    found = to_tree(
        teacher,
        rows,
        np.random.default_rng(context.seed),
        features=features,
        classes=classes,
        resampled=spec.resampled,
        max_depth=spec.max_depth,
        max_leaves=spec.max_leaves,
        min_leaf=spec.min_leaf,
    )
    interpretability = {"kind": "tree", "leaves": found.leaves, "depth": found.depth, "text": "tree.txt"}
    context.progress(f"tree of {found.leaves} leaves, {found.depth} deep")
    parameters = int(np.count_nonzero(found.feature >= 0)) + found.leaves * len(found.classes)
    return model.becomes(found, form="tree", interpretability=interpretability, parameters=parameters)


TECHNIQUE = Technique(DistillTree, ("torch", "onnx", "sklearn"), distill_tree)
