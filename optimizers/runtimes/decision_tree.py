"""A decision tree as plain arrays: it predicts with numpy alone and prints as text.

What distillation yields (:mod:`optimizers.passes.tree_fitting`) and what the tree runtime loads
(:mod:`optimizers.runtimes.trees`). Neither needs the library that fitted the tree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from optimizers.tensors import Array

#: Up to here a walk over Python lists, about 1 us a row, beats numpy's few calls per level of the tree.
_FEW_ROWS = 40


class TreeError(ValueError):
    """A tree or a rule list that cannot be built or read, or inputs that it does not take."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One input column, as a domain expert names it.

    ``level`` makes it a flag: the column is 1 where the category ``name`` has that level, else 0,
    and a condition prints as ``carrier is UA``. Otherwise it is a number, in ``unit``.
    """

    name: str
    unit: str = ""
    level: str | None = None

    def condition(self, above: bool, threshold: float) -> str:
        """``name > threshold`` (``above``) or ``name <= threshold``, as text."""
        if self.level is not None:
            return f"{self.name} {'is' if above else 'is not'} {self.level}"
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.name} {'>' if above else '<='} {number(threshold)}{unit}"

    @classmethod
    def parse(cls, text: str) -> Feature:
        """A feature from one line: ``departure delay [min]``, ``carrier=UA``, or just ``age``.

        >>> Feature.parse("departure delay [min]").condition(True, 15.0)
        'departure delay > 15 min'
        >>> Feature.parse("carrier=UA").condition(False, 0.5)
        'carrier is not UA'
        """
        name, equals, level = text.partition("=")
        if equals:
            return cls(name.strip(), level=level.strip())
        name, bracket, unit = text.partition("[")
        return cls(name.strip(), unit.rstrip("] ") if bracket else "")

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "unit": self.unit, "level": self.level}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Feature:
        try:
            level = value.get("level")
            return cls(str(value["name"]), str(value.get("unit", "")), None if level is None else str(level))
        except (AttributeError, KeyError, TypeError) as error:
            raise TreeError(f"not a feature: {value!r} ({error})") from None


def name_features(count: int, names: Sequence[str] = ()) -> tuple[Feature, ...]:
    """``count`` features from ``names`` (:meth:`Feature.parse`), or ``x0``, ``x1``, ... if none are given."""
    if names and len(names) != count:
        raise TreeError(f"{len(names)} feature names for {count} columns; name each column or none")
    return tuple(Feature.parse(name) for name in (names or [f"x{i}" for i in range(count)]))


def number(value: float) -> str:
    """A number as people write it: no exponent for everyday sizes, no trailing zeros.

    >>> number(15.0), number(0.1 + 0.2), number(1234567.0), number(1.5e-7)
    ('15', '0.3', '1234567', '1.5e-07')
    """
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.6g}"


def snap(low: float, high: float, *, whole: bool) -> float:
    """A threshold that parts ``low`` from ``high`` (``low <= threshold < high``) and reads well.

    Between whole numbers any such number separates alike; otherwise stay in the middle half of the
    gap, for the margin on either side is what makes the split hold on new rows.

    >>> snap(14.0, 15.0, whole=True), snap(0.3125, 0.375, whole=False)
    (14.0, 0.33)
    """
    quarter = 0.0 if whole else (high - low) / 4
    return simplest_between(low + quarter, high - quarter)


def simplest_between(low: float, high: float) -> float:
    """The number with the fewest decimals in ``[low, high)``, so that a threshold reads well.

    >>> simplest_between(14.0, 15.0), simplest_between(0.3125, 0.375), simplest_between(-7.2, 3.0)
    (14.0, 0.32, 0.0)
    """
    if low <= 0 < high:
        return 0.0
    for decimals in range(-6, 16):
        step = 10.0**-decimals
        nearest = float(np.ceil(low / step) * step) if low > 0 else float((np.ceil(high / step) - 1) * step)
        candidate = round(nearest, max(decimals, 0))
        if low <= candidate < high:
            return candidate
    return low


@dataclass(frozen=True, eq=False)
class Tree:
    """A binary decision tree over ``features``; node 0 is the root.

    ``feature`` int32 ``[nodes]``: the column a node asks about, -1 in a leaf.
    ``threshold`` float32 ``[nodes]``: left where ``x <= threshold``, right above it and where x is NaN.
    ``children`` int32 ``[nodes, 2]``: left and right; a leaf points to itself.
    ``scores`` float32 ``[nodes, classes]``: the share of each class among the samples of the node.
    """

    feature: Array
    threshold: Array
    children: Array
    scores: Array
    features: tuple[Feature, ...]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        nodes = len(self.feature)
        shapes = (self.threshold.shape, self.children.shape, self.scores.shape)
        if not nodes or shapes != ((nodes,), (nodes, 2), (nodes, len(self.classes))):
            raise TreeError(f"a tree's arrays disagree: {nodes} nodes, but shapes {shapes}")
        if self.feature.min() < -1 or self.feature.max() >= len(self.features):
            raise TreeError(f"a tree asks about a column outside its {len(self.features)} features")
        inner = self.feature >= 0
        own = np.arange(nodes)
        # Children always come after their parent, so that no walk can go round in a circle.
        if self.children.max() >= nodes or np.any(self.children[inner] <= own[inner, None]):
            raise TreeError("a tree's children must come after their parent, and exist")
        if np.any(self.children[~inner] != own[~inner, None]):
            raise TreeError("a tree's leaf must point to itself")

    @property
    def leaves(self) -> int:
        return int(np.count_nonzero(self.feature < 0))

    @cached_property
    def depth(self) -> int:
        """The most questions asked on a way from the root to a leaf."""
        depth = np.zeros(len(self.feature), dtype=np.int64)
        for node in np.flatnonzero(self.feature >= 0):
            depth[self.children[node]] = depth[node] + 1
        return int(depth.max())

    @cached_property
    def _walk(self) -> tuple[Array, Array]:
        """Column and flattened children per node, ready for the walk of :meth:`apply`."""
        return np.maximum(self.feature, 0).astype(np.intp), self.children.astype(np.intp).ravel()

    @cached_property
    def _lists(self) -> tuple[list[int], list[float], list[list[int]]]:
        return self.feature.tolist(), self.threshold.tolist(), self.children.tolist()

    def apply(self, rows: Array) -> Array:
        """The leaf of each row: float32 ``[n, features]`` to int64 ``[n]``."""
        rows = check_rows(rows, self.features)
        if len(rows) <= _FEW_ROWS:
            return np.array([self._leaf(row) for row in rows.tolist()], dtype=np.intp)
        column, children = self._walk
        node, every = np.zeros(len(rows), dtype=np.intp), np.arange(len(rows))
        for _ in range(self.depth):
            left = rows[every, column[node]] <= self.threshold[node]
            node = children[2 * node + 1 - left]
        return node

    def _leaf(self, row: Sequence[float]) -> int:
        column, threshold, children = self._lists
        node = 0
        while (asked := column[node]) >= 0:
            node = children[node][not row[asked] <= threshold[node]]
        return node

    def predict(self, rows: Array) -> Array:
        """Scores float32 ``[n, classes]``, each row summing to 1, for rows float32 ``[n, features]``."""
        return self.scores[self.apply(rows)]

    def classify(self, rows: Array) -> Array:
        """The class of each row, int64 ``[n]``: the highest score, the first of equals."""
        answers: Array = self.scores.argmax(axis=1)[self.apply(rows)]
        return answers

    def text(self, max_depth: int | None = None) -> str:
        """The tree as an indented outline, cut below ``max_depth`` questions."""
        lines: list[str] = []
        stack = [(0, 0, "")]
        while stack:
            node, depth, asked = stack.pop()
            indent = "  " * max(depth - 1, 0)
            if self.feature[node] < 0 or depth == max_depth:
                best = int(self.scores[node].argmax())
                answer = f"{self.classes[best]} ({self.scores[node, best]:.0%})"
                cut = "" if self.feature[node] < 0 else ", more below"
                lines.append(f"{indent}{asked}: {answer}{cut}" if asked else f"always {answer}{cut}")
                continue
            if asked:
                lines.append(f"{indent}{asked}:")
            feature, threshold = self.features[self.feature[node]], float(self.threshold[node])
            left, right = self.children[node]
            stack.append((int(right), depth + 1, f"if {feature.condition(True, threshold)}"))
            stack.append((int(left), depth + 1, f"if {feature.condition(False, threshold)}"))
        return "\n".join(lines) + "\n"


def check_rows(rows: Array, features: Sequence[Feature]) -> Array:
    """Rows flattened to float32 ``[n, features]``; :class:`TreeError` if the count does not fit."""
    flat = np.asarray(rows, dtype=np.float32)
    flat = flat.reshape(len(flat), -1) if flat.ndim > 1 else flat[:, None]
    if flat.shape[1] != len(features):
        raise TreeError(f"rows of {flat.shape[1]} values, where the model has {len(features)} features")
    return flat
