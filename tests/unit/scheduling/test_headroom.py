"""What those who are accepted must spare, so that as many of them are in time as the policy asks for."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import pytest

from router.scheduling.headroom import Headroom, PredictionTracker, initial_headroom_ms

BUDGET_MS = 200.0


class Accepted(NamedTuple):
    """A request of which it was said that it takes half of its budget."""

    arrived_ms: float
    predicted_ms: float = 100.0
    budget_ms: float = BUDGET_MS

    @property
    def deadline_ms(self) -> float:
        return self.arrived_ms + self.budget_ms


def answered(
    predictions: PredictionTracker, took_ms: float, now_ms: float = 0.0, budget_ms: float = BUDGET_MS
) -> None:
    predictions.answered([Accepted(now_ms - took_ms, budget_ms=budget_ms)], now_ms)


@pytest.mark.parametrize(
    ("in_time", "headroom_ms"), [(0.0, 0.0), (0.98, 0.0), (0.999, 9.31), (0.9999, 17.37)]
)
def test_a_router_that_starts_spares_more_with_every_nine(in_time: float, headroom_ms: float) -> None:
    assert initial_headroom_ms(in_time, 10.0) == pytest.approx(headroom_ms, abs=0.01)
    assert PredictionTracker(in_time, 10.0).allowance(BUDGET_MS, 0.0).headroom_ms == pytest.approx(
        headroom_ms, abs=0.01
    )


@pytest.mark.parametrize(
    "excess_ms",
    [
        lambda draw: draw.expovariate(1 / 10.0),
        lambda draw: draw.uniform(0.0, 40.0),
        lambda draw: abs(draw.gauss(0.0, 20.0)),
        lambda draw: 50.0 if draw.random() < 0.2 else draw.expovariate(1 / 5.0),
    ],
    ids=["exponential", "uniform", "normal", "stalls"],
)
@pytest.mark.parametrize("share", [0.003, 0.01, 0.03])
def test_one_of_a_thousand_takes_longer_whatever_lies_beyond_the_bound(
    excess_ms: Callable[[random.Random], float], share: float
) -> None:
    draw, overrun, longer, count = random.Random(3), Headroom(1.0), 0, 60_000
    for n in range(count + 2_000):
        over_ms = excess_ms(draw) if draw.random() < share else -1.0
        longer += n >= 2_000 and over_ms > overrun.headroom_ms(0.999)
        overrun.learn([over_ms] if over_ms > 0.0 else [], 1)
    assert longer / count <= 0.002


def test_where_predictions_hold_nothing_is_spared() -> None:
    predictions = PredictionTracker(0.999, 100.0)
    for n in range(3_000):
        answered(predictions, 99.0, 10.0 * n)
    assert predictions.allowance(BUDGET_MS, 30_000.0).headroom_ms == 0.0


def test_an_answer_that_is_later_than_predicted_costs_those_of_its_like_time() -> None:
    predictions = PredictionTracker(0.999, 10.0)
    before = predictions.allowance(BUDGET_MS, 0.0)
    answered(predictions, 160.0)
    after, others = predictions.allowance(BUDGET_MS, 0.0), predictions.allowance(60_000.0, 0.0)
    assert after.headroom_ms > before.headroom_ms + 5.0
    assert after.prediction_margin > before.prediction_margin
    for n in range(2_000):
        answered(predictions, 50.0, 10.0 * n, budget_ms=60_000.0)
    assert predictions.allowance(60_000.0, 0.0).headroom_ms < others.headroom_ms
    assert predictions.allowance(BUDGET_MS, 0.0).headroom_ms == after.headroom_ms


def test_a_stall_that_holds_up_many_is_one_event() -> None:
    alone, many = PredictionTracker(0.999, 10.0), PredictionTracker(0.999, 10.0)
    alone.answered([Accepted(-150.0)], 0.0)
    many.answered([Accepted(-150.0)] * 8, 0.0)
    few_ms, more_ms = (each.allowance(BUDGET_MS, 0.0).headroom_ms for each in (alone, many))
    assert few_ms < more_ms < 2.0 * few_ms


def test_who_is_dropped_would_have_taken_longer_than_there_was_time() -> None:
    predictions = PredictionTracker(0.999, 10.0)
    before = predictions.allowance(BUDGET_MS, 0.0)
    predictions.dropped([Accepted(-190.0)], 0.0)
    assert predictions.allowance(BUDGET_MS, 0.0).headroom_ms > before.headroom_ms + 10.0
    assert predictions.allowance(BUDGET_MS, 0.0).prediction_margin > before.prediction_margin


def test_of_what_was_promised_nothing_nothing_is_learnt() -> None:
    predictions = PredictionTracker(0.999, 10.0)
    before = predictions.allowance(BUDGET_MS, 0.0)
    predictions.answered([Accepted(-500.0, predicted_ms=0.0)], 0.0)
    predictions.dropped([Accepted(-500.0, predicted_ms=0.0)], 0.0)
    assert predictions.allowance(BUDGET_MS, 0.0) == before
