"""The margin: predictions hold as often as promised, whatever the truth's distribution, and stalls pass."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from router.calibration import Margin


def coverage(truth: Callable[[random.Random], float], batches: int, size: int) -> float:
    """The share of predictions of an estimate of 1 that held, one truth for each batch."""
    draw, margin, held = random.Random(3), Margin(), 0
    for _ in range(batches):
        late = truth(draw) > 1.0 + margin.value
        margin.learn(size if late else 0, size)
        held += not late
    return held / batches


@pytest.mark.parametrize("size", [1, 20])
@pytest.mark.parametrize(
    "truth",
    [
        lambda draw: draw.uniform(0.2, 1.0),
        lambda draw: draw.lognormvariate(0.0, 0.5),
        lambda draw: 0.5 + draw.expovariate(4.0),
        lambda draw: 3.0 if draw.random() < 0.05 else 1.0,
    ],
    ids=["always early", "lognormal", "long tail", "two speeds"],
)
def test_ninety_nine_of_a_hundred_hold(truth: Callable[[random.Random], float], size: int) -> None:
    assert 0.98 <= coverage(truth, 20_000, size) <= 0.999


def test_one_stall_that_holds_up_many_is_one_event() -> None:
    margin = Margin()
    for _ in range(50):
        margin.learn(0, 30)
    before = margin.value
    margin.learn(30, 30)
    assert before < margin.value < before + 0.2


def test_nothing_that_came_due_changes_nothing() -> None:
    margin = Margin()
    before = margin.value
    margin.learn(0, 0)
    assert margin.value == before


def test_it_stays_within_what_can_be_recovered_from() -> None:
    margin = Margin()
    for _ in range(1_000):
        margin.learn(10, 10)
    assert margin.value == 4.0
