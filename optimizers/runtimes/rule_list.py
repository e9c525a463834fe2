"""An ordered list of readable rules that predicts by itself: the first rule that holds answers.

::

    1. if departure delay > 16 min then late (97%)
    2. if 5 < departure delay <= 16 min and origin is EWR then late (71%)
    otherwise on time (91%)

What distillation yields (:mod:`optimizers.passes.rule_fitting`) and the rules runtime loads
(:mod:`optimizers.runtimes.trees`): numpy alone predicts, and JSON keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from optimizers.runtimes.decision_tree import Feature, TreeError, check_rows, number
from optimizers.tensors import Array

#: Up to here Python's own comparisons beat one numpy call per condition.
_FEW_ROWS = 24


@dataclass(frozen=True, slots=True)
class Condition:
    """``x[feature] > threshold`` where ``above``, else ``x[feature] <= threshold``. NaN is above."""

    feature: int
    above: bool
    threshold: float

    def holds(self, rows: Array) -> Array:
        """bool ``[n]`` for rows float32 ``[n, features]``."""
        below: Array = rows[:, self.feature] <= self.threshold
        return ~below if self.above else below


@dataclass(frozen=True, slots=True)
class Rule:
    """All of ``conditions`` hold: then these ``scores``, one per class, the highest being the answer."""

    conditions: tuple[Condition, ...]
    scores: tuple[float, ...]

    def holds(self, rows: Array) -> Array:
        """bool ``[n]`` for rows float32 ``[n, features]``."""
        held = np.ones(len(rows), dtype=np.bool_)
        for condition in self.conditions:
            held &= condition.holds(rows)
        return held


@dataclass(frozen=True)
class RuleList:
    """Rules in order, and the scores of rows for which none holds.

    ``scores`` are the share of each class among the rows that a rule decided when it was learned.
    """

    rules: tuple[Rule, ...]
    default: tuple[float, ...]
    features: tuple[Feature, ...]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for scores in (self.default, *(rule.scores for rule in self.rules)):
            if len(scores) != len(self.classes):
                raise TreeError(f"{len(scores)} scores for {len(self.classes)} classes")
        for condition in (c for rule in self.rules for c in rule.conditions):
            if not 0 <= condition.feature < len(self.features):
                raise TreeError(f"a rule asks about column {condition.feature} of {len(self.features)}")

    @property
    def longest(self) -> int:
        """The most conditions in one rule."""
        return max((len(rule.conditions) for rule in self.rules), default=0)

    @cached_property
    def scores(self) -> Array:
        """float32 ``[rules + 1, classes]``: what each decision of :meth:`apply` answers."""
        return np.array([*(rule.scores for rule in self.rules), self.default], dtype=np.float32)

    @cached_property
    def _checks(self) -> list[list[tuple[int, bool, float]]]:
        return [[(c.feature, c.above, c.threshold) for c in rule.conditions] for rule in self.rules]

    def apply(self, rows: Array) -> Array:
        """Which rule decides each row, int64 ``[n]``; ``len(rules)`` where the default does."""
        rows = check_rows(rows, self.features)
        if len(rows) <= _FEW_ROWS:
            return np.array([self._first(row) for row in rows.tolist()], dtype=np.int64)
        decided = np.full(len(rows), len(self.rules), dtype=np.int64)
        open_rows = np.arange(len(rows))
        for index, rule in enumerate(self.rules):
            held = rule.holds(rows[open_rows])
            decided[open_rows[held]] = index
            open_rows = open_rows[~held]
        return decided

    def _first(self, row: Sequence[float]) -> int:
        for index, checks in enumerate(self._checks):
            if all((not row[f] <= limit) if above else (row[f] <= limit) for f, above, limit in checks):
                return index
        return len(self.rules)

    def predict(self, rows: Array) -> Array:
        """Scores float32 ``[n, classes]`` for rows float32 ``[n, features]``."""
        return self.scores[self.apply(rows)]

    def classify(self, rows: Array) -> Array:
        """The class of each row, int64 ``[n]``: the highest score, the first of equals."""
        answers: Array = self.scores.argmax(axis=1)[self.apply(rows)]
        return answers

    def text(self) -> str:
        """The list as a person reads it, one rule a line; it is what runs, to the last digit shown."""
        lines = [
            f"{index}. if {self._describe(rule.conditions)} then {self._answer(rule.scores)}"
            for index, rule in enumerate(self.rules, start=1)
        ]
        return (
            "\n".join([*lines, f"{'otherwise' if lines else 'always'} {self._answer(self.default)}"]) + "\n"
        )

    def _answer(self, scores: Sequence[float]) -> str:
        best = max(range(len(scores)), key=scores.__getitem__)
        return f"{self.classes[best]} ({scores[best]:.0%})"

    def _describe(self, conditions: Sequence[Condition]) -> str:
        by_feature: dict[int, list[Condition]] = {}
        for condition in conditions:
            by_feature.setdefault(condition.feature, []).append(condition)
        return " and ".join(_bounds(self.features[f], cs) for f, cs in by_feature.items()) or "anything"

    def to_json(self) -> dict[str, Any]:
        return {
            "features": [feature.to_json() for feature in self.features],
            "classes": list(self.classes),
            "rules": [
                {
                    "if": [[c.feature, ">" if c.above else "<=", c.threshold] for c in rule.conditions],
                    "scores": list(rule.scores),
                }
                for rule in self.rules
            ],
            "default": list(self.default),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RuleList:
        """Raises :class:`TreeError` for anything but what :meth:`to_json` gives."""
        try:
            rules = tuple(
                Rule(tuple(_condition(c) for c in rule["if"]), tuple(float(s) for s in rule["scores"]))
                for rule in value["rules"]
            )
            features = tuple(Feature.from_json(f) for f in value["features"])
            default = tuple(float(s) for s in value["default"])
            return cls(rules, default, features, tuple(str(c) for c in value["classes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise TreeError(f"not a rule list: {error}") from None


def _condition(value: Sequence[Any]) -> Condition:
    feature, sign, threshold = value
    if sign not in (">", "<="):
        raise TreeError(f"a condition compares with '>' or '<=', not {sign!r}")
    return Condition(int(feature), sign == ">", float(threshold))


def _bounds(feature: Feature, conditions: Sequence[Condition]) -> str:
    """The conditions on one feature; a bound on either side reads as an interval."""
    if len(conditions) == 2 and conditions[0].above != conditions[1].above and feature.level is None:
        low, high = sorted(conditions, key=lambda c: not c.above)
        unit = f" {feature.unit}" if feature.unit else ""
        return f"{number(low.threshold)} < {feature.name} <= {number(high.threshold)}{unit}"
    return " and ".join(feature.condition(c.above, c.threshold) for c in conditions)
