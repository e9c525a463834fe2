"""The margin: predictions hold as often as promised, whatever the truth's distribution, and stalls pass."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from router.scheduling.calibration import PredictionMargin, PredictionMargins, class_of
from router.scheduling.tuning import MARGIN_START


def coverage(truth: Callable[[random.Random], float], batches: int, size: int) -> float:
    """The share of predictions of an estimate of 1 that held, one truth for each batch."""
    draw, margin, held = random.Random(3), PredictionMargin(), 0
    for n in range(batches):
        now_ms = 40.0 * n
        late = truth(draw) > 1.0 + margin.value(now_ms)
        margin.learn(size if late else 0, size, now_ms)
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
    margin = PredictionMargin()
    for _ in range(50):
        margin.learn(0, 30, 0.0)
    before = margin.value(0.0)
    margin.learn(30, 30, 0.0)
    assert before < margin.value(0.0) < before + 0.2


def test_a_stall_widens_it_by_so_much_a_second_however_many_batches_it_held_up() -> None:
    margin = PredictionMargin()
    for n in range(3_000):
        margin.learn(0, 1, 10.0 * n)
    before = margin.value(30_000.0)
    for n in range(200):
        margin.learn(1, 1, 30_000.0 + 5.0 * n)
    assert before + 0.5 < margin.value(31_000.0) < before + 1.0


def test_nothing_that_came_due_changes_nothing() -> None:
    margin = PredictionMargin()
    before = margin.value(0.0)
    margin.learn(0, 0, 0.0)
    assert margin.value(0.0) == before


def widened() -> PredictionMargin:
    margin = PredictionMargin()
    for n in range(20_000):
        margin.learn(10, 10, n - 20_000.0)
    return margin


def test_it_stays_within_what_can_be_recovered_from_and_without_news_it_narrows() -> None:
    margin = widened()
    assert margin.value(0.0) == margin.value(900.0) == 4.0
    assert margin.value(2_000.0) == pytest.approx(MARGIN_START + (4.0 - MARGIN_START) / 2, rel=1e-3)
    assert margin.value(60_000.0) == pytest.approx(MARGIN_START)
    margin.learn(0, 1, 2_000.0)
    assert margin.value(2_000.0) < MARGIN_START + (4.0 - MARGIN_START) / 2


def test_a_narrow_margin_is_kept_however_long_nothing_is_heard() -> None:
    margin = PredictionMargin(value=0.1)
    margin.learn(0, 1, 0.0)
    assert margin.value(1e9) == margin.value(0.0) < 0.1


def test_long_budgets_and_short_ones_learn_apart_and_a_new_kind_begins_with_what_all_have_learnt() -> None:
    margins = PredictionMargins()
    for n in range(200):
        margins.learn([(50.0, False), (5_000.0, n % 5 == 0)], float(n))
    short, long, unseen = (margins.value(class_of(ms), 200.0) for ms in (50.0, 5_000.0, 1e9))
    assert short < unseen < long
    assert margins.value(class_of(40.0), 200.0) == margins.value(class_of(50.0), 200.0)
    margins.learn([(math.inf, True)], 201.0)
    assert margins.value(class_of(math.inf), 201.0) > margins.value(class_of(50.0), 201.0)
