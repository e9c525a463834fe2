"""The passes ``distill_tree`` and ``distill_rules``, and how their results are stored.

They put the algorithms of :mod:`optimizers.passes.distill_tree` and :mod:`optimizers.passes.distill_rules` to
a task: the teacher is the original model as it is deployed, the rows are the task's training data, and
the student takes and gives the same tensors as its teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimizers.passes.decision_tree import Feature, Tree, name_features
from optimizers.passes.distill_rules import to_rules
from optimizers.passes.distill_tree import Teacher, to_tree
from optimizers.passes.registry import Packed, PassError
from optimizers.passes.rules import RuleList
from optimizers.passes.spec_shrink import DistillRules, DistillTree
from optimizers.runtimes.trees import read_rules, read_tree, rules_bytes, tree_bytes
from optimizers.task import Context, Model, Task
from optimizers.tensors import Array

#: Rows per call of the teacher: enough to be fast, little enough for any network's memory.
_TEACHER_ROWS = 512


def tree(model: Model, spec: DistillTree, context: Context) -> Model:
    """``model``'s teacher as a decision tree. Raises :class:`PassError` for anything but a classifier."""
    rows, teacher, features, classes = _lesson(model, spec.rows, context)
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


def rules(model: Model, spec: DistillRules, context: Context) -> Model:
    """``model``'s teacher as a rule list. Raises :class:`PassError` for anything but a classifier."""
    rows, teacher, features, classes = _lesson(model, spec.rows, context)
    found = to_rules(
        teacher,
        rows,
        np.random.default_rng(context.seed),
        features=features,
        classes=classes,
        resampled=spec.resampled,
        max_rules=spec.max_rules,
        max_conditions=spec.max_conditions,
        worth=spec.worth,
    )
    interpretability = {
        "kind": "rules",
        "rules": len(found.rules),
        "longest": found.longest,
        "text": "rules.txt",
    }
    context.progress(f"{len(found.rules)} rules of at most {found.longest} conditions")
    parameters = sum(len(rule.conditions) + len(rule.scores) for rule in found.rules) + len(found.default)
    return model.becomes(found, form="rules", interpretability=interpretability, parameters=parameters)


def _lesson(
    model: Model, count: int, context: Context
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


def pack_tree(model: Model, task: Task) -> Packed:
    """A tree as ``tree.npz``, with its text beside it."""
    value: Tree = model.value
    files = {"tree.npz": tree_bytes(value), "tree.txt": value.text().encode()}
    return Packed("trees", files, {**model.settings, "weights": "tree.npz"})


def unpack_tree(packed: Packed, model: Model, task: Task) -> Tree:
    return read_tree(packed.files["tree.npz"])


def pack_rules(model: Model, task: Task) -> Packed:
    """A rule list as ``rules.json``, with its text beside it."""
    value: RuleList = model.value
    files = {"rules.json": rules_bytes(value), "rules.txt": value.text().encode()}
    return Packed("rules", files, {**model.settings, "weights": "rules.json"})


def unpack_rules(packed: Packed, model: Model, task: Task) -> RuleList:
    return read_rules(packed.files["rules.json"])
