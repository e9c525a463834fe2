"""A tree fitted to a tree answers exactly as it does; rules never do worse than saying nothing."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from optimizers.passes.rule_fitting import fit_rules
from optimizers.passes.tree_fitting import fidelity, fit_tree
from optimizers.runtimes.rule_list import RuleList
from optimizers.tensors import Array
from tests.support.effort import tries

# Steps well over the 1e-7 below which scikit-learn takes two values for one.
FLOATS = st.integers(-4096, 4096).map(lambda i: i / 64)
TABLES = st.integers(2, 60).flatmap(
    lambda n: st.tuples(
        arrays(np.float32, (n, 3), elements=FLOATS), arrays(np.int64, n, elements=st.integers(0, 3))
    )
)


@given(TABLES, st.integers(2, 12))
@settings(max_examples=tries(80), deadline=None)
def test_tree_fitted_to_a_tree_has_fidelity_one(table: tuple[Array, Array], leaves: int) -> None:
    rows, answers = table
    teacher = fit_tree(rows, answers, max_leaves=leaves, classes="abcd")
    student = fit_tree(rows, teacher.classify(rows), classes="abcd")
    assert fidelity(student.classify(rows), teacher.classify(rows)) == 1


@given(TABLES, st.integers(1, 6), st.integers(1, 4))
@settings(max_examples=tries(80), deadline=None)
def test_rules_keep_their_bounds_and_beat_or_equal_the_commonest_answer(
    table: tuple[Array, Array], max_rules: int, max_conditions: int
) -> None:
    rows, answers = table
    rules = fit_rules(rows, answers, max_rules=max_rules, max_conditions=max_conditions, classes="abcd")
    assert len(rules.rules) <= max_rules and rules.longest <= max_conditions
    assert all(rule.conditions for rule in rules.rules)
    commonest = np.bincount(answers).max() / len(answers)
    assert fidelity(rules.classify(rows), answers) >= commonest
    np.testing.assert_allclose(rules.scores.sum(axis=1), 1, rtol=1e-6)
    assert RuleList.from_json(rules.to_json()) == rules
