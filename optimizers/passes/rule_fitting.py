"""Distillation to rules: a short ordered list that answers like its teacher.

The way of C4.5rules (Quinlan, "Generating production rules from decision trees", IJCAI 1987), on
the teacher's answers: the leaves of a small tree become rules, conditions and rules that the list
does as well without are dropped, and what most rows answer becomes the default. What is kept is
decided by the fidelity of the whole list, not of each rule by itself. No kept library does this
for a teacher's answers within bounds on number and length; the tree is scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from optimizers.passes.tree_fitting import Teacher, fidelity, fit_tree, resample
from optimizers.runtimes.decision_tree import Feature, Tree, TreeError
from optimizers.runtimes.rule_list import Condition, Rule, RuleList
from optimizers.tensors import Array

#: Trees of this many leaves per rule are tried as starting points; the best list is kept.
_LEAVES_PER_RULE = (1, 2, 4)


def fit_rules(
    rows: ArrayLike,
    answers: ArrayLike,
    *,
    features: Sequence[Feature] = (),
    classes: Sequence[str] = (),
    max_rules: int = 20,
    max_conditions: int = 4,
    worth: float = 0.0,
    seed: int = 0,
) -> RuleList:
    """A rule list fitted to a teacher's answers: rows ``[n, features]``, answers int ``[n]``.

    At most ``max_rules`` rules of at most ``max_conditions`` conditions, not counting the default. A
    rule or a condition stays only if the list answers a share of more than ``worth`` of the rows
    better with it: what earns less costs its reader more.

    >>> rows, answers = [[1, 2], [3, 4], [5, 6], [7, 8]], [0, 1, 0, 1]
    >>> rules = fit_rules(rows, answers)
    >>> rules.classify(rows).tolist()
    [0, 1, 0, 1]
    """
    if max_rules < 1 or max_conditions < 1:
        raise TreeError(
            f"a rule list has at least 1 rule of 1 condition, not {max_rules} of {max_conditions}"
        )
    table = np.asarray(rows, dtype=np.float32)
    table = table.reshape(len(table), -1)
    labels = np.asarray(answers, dtype=np.int64)
    best: tuple[float, RuleList] | None = None
    for leaves in (factor * (max_rules + 1) for factor in _LEAVES_PER_RULE):
        tree = fit_tree(table, labels, features=features, classes=classes, max_leaves=leaves, seed=seed)
        for default in _defaults(tree, table):
            learner = _Learner(table, labels, default, _drafts(tree, table, labels, default), worth)
            learner.shorten(max_conditions)
            learner.drop(max_rules)
            found = learner.finish(tree.features, tree.classes)
            length = sum(1 + len(rule.conditions) for rule in found.rules)
            score = fidelity(found.classify(table), labels) - worth * length
            if best is None or score > best[0]:
                best = score, found
        if tree.leaves < leaves:
            break  # a larger bound gives the same tree
    assert best is not None
    return best[1]


def to_rules(
    teacher: Teacher,
    rows: Array,
    rng: np.random.Generator,
    *,
    features: Sequence[Feature] = (),
    classes: Sequence[str] = (),
    resampled: int = 0,
    max_rules: int = 20,
    max_conditions: int = 4,
    worth: float = 0.0,
) -> RuleList:
    """Distill ``teacher`` to rules, on ``rows`` float32 ``[n, features]`` and ``resampled`` more."""
    rows = np.asarray(rows, dtype=np.float32)
    table = np.concatenate([rows, resample(rows, resampled, rng, features)])
    return fit_rules(
        table,
        teacher(table),
        features=features,
        classes=classes,
        max_rules=max_rules,
        max_conditions=max_conditions,
        worth=worth,
        seed=int(rng.integers(2**31)),
    )


def _defaults(tree: Tree, rows: Array) -> list[int]:
    """The two classes that most rows get: the candidates for what the rules need not say."""
    counts = np.bincount(tree.classify(rows), minlength=len(tree.classes))
    order = np.argsort(-counts, kind="stable")[:2]
    return [int(c) for c in order if counts[c]] or [0]


@dataclass
class _Draft:
    """A rule in the making: its conditions, the class it answers, and where it holds, bool ``[n]``."""

    conditions: list[Condition]
    answer: int
    held: Array


def _drafts(tree: Tree, rows: Array, labels: Array, default: int) -> list[_Draft]:
    """A draft per leaf that does not answer ``default``, the purest first, then the largest."""
    found: list[tuple[float, int, _Draft]] = []
    leaf_of = tree.apply(rows)
    stack: list[tuple[int, dict[tuple[int, bool], float]]] = [(0, {})]
    while stack:
        node, bounds = stack.pop()
        column = int(tree.feature[node])
        if column < 0:
            answer = int(tree.scores[node].argmax())
            if answer != default and bounds:
                held = leaf_of == node
                conditions = [Condition(f, above, limit) for (f, above), limit in bounds.items()]
                purity = float(np.mean(labels[held] == answer))
                found.append((-purity, -int(held.sum()), _Draft(conditions, answer, held)))
            continue
        # A deeper bound on the same side is the tighter one, so it replaces the one above it.
        for child, above in ((1, True), (0, False)):
            bound = {(column, above): float(tree.threshold[node])}
            stack.append((int(tree.children[node, child]), bounds | bound))
    return [draft for _, _, draft in sorted(found, key=lambda item: item[:2])]


class _Learner:
    """A list of drafts, judged by how many of ``rows`` the whole list answers as ``labels`` say."""

    def __init__(self, rows: Array, labels: Array, default: int, drafts: list[_Draft], worth: float) -> None:
        self._rows, self._labels, self._drafts = rows, labels, drafts
        self._default = default
        self._worth = worth * len(rows)

    def shorten(self, limit: int) -> None:
        """Drop conditions that the list does as well without, and more where a rule is over ``limit``."""
        open_rows = np.arange(len(self._rows))
        after = self._right_after()
        for index, draft in enumerate(self._drafts):
            self._shorten_one(draft, limit, open_rows, after[index][open_rows])
            open_rows = open_rows[~draft.held[open_rows]]

    def _shorten_one(self, draft: _Draft, limit: int, reached: Array, right_after: Array) -> None:
        """``right_after`` says for each reached row whether the list is right if this rule passes on it."""
        right = self._labels[reached] == draft.answer
        table = self._rows[reached]
        holds = [condition.holds(table) for condition in draft.conditions]
        score = _score(np.logical_and.reduce(holds), right, right_after)
        while len(holds) > 1:
            without = [np.logical_and.reduce(holds[:i] + holds[i + 1 :]) for i in range(len(holds))]
            scores = [_score(held, right, right_after) for held in without]
            # Of equals drop the last: what the tree asked last matters least.
            best = max(range(len(scores)), key=lambda i: (scores[i], i))
            if score - scores[best] > self._worth and len(holds) <= limit:
                break
            del holds[best], draft.conditions[best]
            score = scores[best]
        draft.held = Rule(tuple(draft.conditions), ()).holds(self._rows)

    def drop(self, limit: int) -> None:
        """Drop rules that the list does as well without, and more where it is over ``limit``."""
        while self._drafts:
            after = self._right_after()
            losses = []
            reached = np.ones(len(self._rows), dtype=np.bool_)
            for index, draft in enumerate(self._drafts):
                decided = reached & draft.held
                right = int(np.count_nonzero(self._labels[decided] == draft.answer))
                losses.append(right - int(np.count_nonzero(after[index][decided])))
                reached &= ~draft.held
            # Of equals drop the last: the purer rules stand first.
            worst = min(range(len(losses)), key=lambda i: (losses[i], -i))
            if losses[worst] > self._worth and len(self._drafts) <= limit:
                return
            del self._drafts[worst]

    def _right_after(self) -> list[Array]:
        """For each rule, whether the list is right on a row that this rule and all before pass on."""
        right = self._labels == self._default
        found = []
        for draft in reversed(self._drafts):
            found.append(right)
            right = np.where(draft.held, self._labels == draft.answer, right)
        return found[::-1]

    def finish(self, features: tuple[Feature, ...], classes: tuple[str, ...]) -> RuleList:
        """The list, each rule with the shares of the classes among the rows that it decides."""
        reached = np.ones(len(self._rows), dtype=np.bool_)
        rules = []
        for draft in self._drafts:
            decided = reached & draft.held
            rules.append(Rule(tuple(draft.conditions), self._shares(decided, draft.answer, len(classes))))
            reached &= ~draft.held
        return RuleList(tuple(rules), self._shares(reached, self._default, len(classes)), features, classes)

    def _shares(self, rows: Array, otherwise: int, classes: int) -> tuple[float, ...]:
        """The share of each class among ``rows``; all of ``otherwise`` where there are none."""
        counts = np.bincount(self._labels[rows], minlength=classes)
        if not counts.sum():
            counts[otherwise] = 1
        return tuple(float(share) for share in counts / counts.sum())


def _score(held: Array, right: Array, right_after: Array) -> int:
    """How many reached rows the list answers right if the rule holds at ``held``."""
    return int(np.count_nonzero(np.where(held, right, right_after)))
