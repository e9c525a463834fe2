"""The pass ``distill_rules``: a short list of rules that answers like the original, and can be read.

The fitting: :mod:`optimizers.passes.rule_fitting`. The student takes and gives
the same tensors as its teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from optimizers.passes.lesson import lesson
from optimizers.passes.rule_fitting import to_rules
from optimizers.passes.technique import PassSpec, Technique, within
from optimizers.task import PassContext, TaskModel


@dataclass(frozen=True)
class DistillRules(PassSpec):
    """An ordered list of at most ``max_rules`` rules of at most ``max_conditions`` conditions each.

    Fitted to the original's answers on ``rows`` training rows and ``resampled`` more. A rule or a
    condition that improves less than a share ``worth`` of the answers is left out: fewer read better.
    """

    kind: ClassVar[str] = "distill_rules"
    rows: int = 50_000
    resampled: int = 10_000
    max_rules: int = 20
    max_conditions: int = 4
    worth: float = 0.0002

    def __post_init__(self) -> None:
        within(self, "rows", 1, 10_000_000)
        within(self, "worth", 0, 0.5)
        within(self, "resampled", 0, 10_000_000)
        within(self, "max_rules", 1, 1000)
        within(self, "max_conditions", 1, 32)


def distill_rules(model: TaskModel, spec: DistillRules, context: PassContext) -> TaskModel:
    """``model``'s teacher as a rule list. Raises :class:`PassError` for anything but a classifier."""
    rows, teacher, features, classes = lesson(model, spec.rows, context)
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


TECHNIQUE = Technique(DistillRules, ("torch", "onnx", "sklearn"), distill_rules)
