"""Rule lists: bounded, ordered, true to their teacher, and their text is what runs."""

import doctest

import numpy as np
import pytest

from optimizers.passes import rule_fitting
from optimizers.passes.rule_fitting import fit_rules, to_rules
from optimizers.passes.tree_fitting import fidelity
from optimizers.runtimes.decision_tree import Feature, TreeError, name_features
from optimizers.runtimes.rule_list import Condition, Rule, RuleList
from optimizers.runtimes.trees import read_rules, rules_bytes
from optimizers.tensors import Array

CLASSES = ("on time", "late")
FEATURES = (Feature("delay", "min"), Feature("carrier", level="UA"))


def delayed() -> RuleList:
    """Late over 30 minutes; from 10 to 30 only with UA."""
    return RuleList(
        (
            Rule((Condition(0, True, 30.0),), (0.1, 0.9)),
            Rule(
                (Condition(0, True, 10.0), Condition(0, False, 30.0), Condition(1, True, 0.5)), (0.25, 0.75)
            ),
        ),
        (0.98, 0.02),
        FEATURES,
        CLASSES,
    )


def test_worked_example_is_answered_alike() -> None:
    rows, answers = [[1, 2], [3, 4], [5, 6], [7, 8]], [0, 1, 0, 1]
    rules = fit_rules(rows, answers)
    assert rules.classify(np.array(rows)).tolist() == answers
    assert len(rules.rules) == 2, "the default spares the rules of its class"


def test_first_rule_that_holds_decides() -> None:
    rows = np.array([[40, 0], [20, 1], [20, 0], [5, 1]], dtype=np.float32)
    assert delayed().apply(rows).tolist() == [0, 1, 2, 2]
    assert delayed().classify(rows).tolist() == [1, 1, 0, 0]


def test_text_reads_well() -> None:
    assert delayed().text() == (
        "1. if delay > 30 min then late (90%)\n"
        "2. if 10 < delay <= 30 min and carrier is UA then late (75%)\n"
        "otherwise on time (98%)\n"
    )


def test_few_rows_and_many_rows_are_decided_alike() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, 4)).astype(np.float32)
    rules = fit_rules(rows, (rows[:, 0] * rows[:, 1] > 0).astype(int) + (rows[:, 3] > 1), max_rules=12)
    rows[3, 1] = np.nan
    alone = np.concatenate([rules.apply(rows[i : i + 1]) for i in range(200)])
    np.testing.assert_array_equal(alone, rules.apply(rows)[:200])


def test_text_parsed_again_answers_as_the_list_does() -> None:
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 40, size=(3000, 3)).astype(np.float32)
    answers = ((rows[:, 0] > 12) & (rows[:, 1] <= 30) | (rows[:, 2] > 35)).astype(int)
    rules = fit_rules(rows, answers, classes=CLASSES, max_rules=8)
    *lines, default = rules.text().splitlines()
    for row in rows[:300]:
        said = next(
            (answer for line in lines if (answer := _read(line, row))), _between(default, "otherwise", "(")
        )
        assert said == CLASSES[int(rules.classify(row[None])[0])]


def _between(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].partition(end)[0].strip()


def _read(line: str, row: Array) -> str:
    """What a person answers who reads one printed rule: the class, or nothing where it does not hold."""
    for part in _between(line, "if", "then").split(" and "):
        words = [str(row[int(word[1:])]) if word[0] == "x" else word for word in part.split()]
        if len(words) == 3:
            value, limit = float(words[0]), float(words[2])
            holds = value > limit if words[1] == ">" else value <= limit
        else:
            holds = float(words[0]) < float(words[2]) <= float(words[4])
        if not holds:
            return ""
    return _between(line, "then", "(")


@pytest.mark.parametrize(("max_rules", "max_conditions"), [(1, 1), (3, 2), (10, 4)])
def test_bounds_are_kept_and_the_constant_answer_is_beaten(max_rules: int, max_conditions: int) -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(2000, 6)).astype(np.float32)
    answers = (rows @ rng.normal(size=(6, 4))).argmax(axis=1)
    rules = fit_rules(rows, answers, max_rules=max_rules, max_conditions=max_conditions)
    assert len(rules.rules) <= max_rules and rules.longest <= max_conditions
    assert fidelity(rules.classify(rows), answers) > np.bincount(answers).max() / len(answers)


def test_a_teacher_that_is_rules_is_learned_whole() -> None:
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.integers(-10, 90, 4000), rng.integers(0, 2, 4000)]).astype(np.float32)
    teacher = delayed()
    found = to_rules(teacher.classify, rows, rng, features=FEATURES, classes=CLASSES, resampled=1000)
    assert fidelity(found.classify(rows), teacher.classify(rows)) == 1
    assert len(found.rules) == 2 and found.longest <= 3
    assert "30 min" in found.text() and "10 min" in found.text()


def test_teacher_with_one_answer_needs_no_rule() -> None:
    rules = fit_rules([[1.0], [2.0], [3.0]], [1, 1, 1], classes=CLASSES)
    assert rules.rules == () and rules.text() == "always late (100%)\n"
    assert rules.classify(np.array([[5.0]])).tolist() == [1]


def test_rule_that_earns_less_than_its_worth_is_left_out() -> None:
    rng = np.random.default_rng(0)
    rows = rng.random((5000, 2)).astype(np.float32)
    answers = np.where((rows[:, 0] > 0.5) | (rows[:, 1] > 0.98), 1, 0)  # the second is 1% of the rows
    full = fit_rules(rows, answers, max_conditions=2)
    short = fit_rules(rows, answers, max_conditions=2, worth=0.02)
    assert fidelity(full.classify(rows), answers) == 1 and "x1" in full.text()
    assert len(short.rules) == 1 and "x1" not in short.text()
    assert fidelity(short.classify(rows), answers) > 0.98


def test_stored_rules_are_the_same_rules() -> None:
    assert read_rules(rules_bytes(delayed())) == delayed()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        rules_bytes(delayed()).replace(b'">"', b'"=="'),
        rules_bytes(delayed()).replace(b"0.98,", b""),
        rules_bytes(delayed()).replace(b"30.0", b'"x"'),
    ],
)
def test_damaged_rules_are_a_clear_error(content: bytes) -> None:
    with pytest.raises(TreeError):
        read_rules(content)


def test_impossible_bounds_are_refused() -> None:
    with pytest.raises(TreeError, match="at least 1 rule"):
        fit_rules([[1.0], [2.0]], [0, 1], max_rules=0)
    with pytest.raises(TreeError, match="column 7"):
        RuleList((Rule((Condition(7, True, 0.0),), (1.0,)),), (1.0,), name_features(2), ("a",))


def test_examples_in_the_docstrings_are_true() -> None:
    for module in (rule_fitting,):
        result = doctest.testmod(module)
        assert result.attempted > 0 and result.failed == 0
