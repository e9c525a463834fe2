"""What a tree or a rule list learns from: training rows, names, and the original's answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimizers.formats.errors import PassError
from optimizers.passes.tree_fitting import Teacher
from optimizers.runtimes.decision_tree import Feature, name_features
from optimizers.task import PassContext, TaskModel
from optimizers.tensors import Array

#: Rows per call of the teacher: enough to be fast, little enough for any network's memory.
_TEACHER_ROWS = 512


def lesson(
    model: TaskModel, count: int, context: PassContext
) -> tuple[Array, Teacher, tuple[Feature, ...], Sequence[str]]:
    """At most ``count`` training rows ``[n, features]``, the teacher over such rows, and the names."""
    task = context.task
    if len(model.inputs) != 1 or not model.inputs[0].datatype.startswith(("FP", "INT", "UINT")):
        raise PassError(
            f"a tree or rules take one numeric input, {task.name} has "
            f"{[(s.name, s.datatype) for s in model.inputs]}; distill to a smaller network instead"
        )
    kinds = {spec.name: spec for spec in model.outputs}
    if not {"label", "scores"} <= set(kinds):
        raise PassError(
            f"a tree or rules learn from a classifier, with outputs label and scores; {task.name} has "
            f"{sorted(kinds)}"
        )
    given = model.inputs[0]
    inputs = np.concatenate([part[given.name] for part in context.calibration(count, _TEACHER_ROWS)])
    rows = inputs.reshape(len(inputs), -1).astype(np.float32)

    def teacher(table: Array) -> Array:
        parts = [
            context.teacher({given.name: part.reshape(-1, *inputs.shape[1:]).astype(given.dtype)})["label"]
            for part in np.split(table, range(_TEACHER_ROWS, len(table), _TEACHER_ROWS))
        ]
        return np.concatenate(parts)

    features = name_features(rows.shape[1], task.feature_names)
    classes = task.class_names or tuple(str(i) for i in range(kinds["scores"].shape[-1]))
    return rows, teacher, features, classes
