"""The margin: predictions hold as often as promised, whatever the truth's distribution, and stalls pass."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest

from router.calibration import START, Margin, Margins, Promises, class_of, spare_start


def coverage(truth: Callable[[random.Random], float], batches: int, size: int) -> float:
    """The share of predictions of an estimate of 1 that held, one truth for each batch."""
    draw, margin, held = random.Random(3), Margin(), 0
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
    margin = Margin()
    for _ in range(50):
        margin.learn(0, 30, 0.0)
    before = margin.value(0.0)
    margin.learn(30, 30, 0.0)
    assert before < margin.value(0.0) < before + 0.2


def test_a_stall_widens_it_by_so_much_a_second_however_many_batches_it_held_up() -> None:
    margin = Margin()
    for n in range(3_000):
        margin.learn(0, 1, 10.0 * n)
    before = margin.value(30_000.0)
    for n in range(200):
        margin.learn(1, 1, 30_000.0 + 5.0 * n)
    assert before + 0.5 < margin.value(31_000.0) < before + 1.0


def test_nothing_that_came_due_changes_nothing() -> None:
    margin = Margin()
    before = margin.value(0.0)
    margin.learn(0, 0, 0.0)
    assert margin.value(0.0) == before


def widened() -> Margin:
    margin = Margin()
    for n in range(20_000):
        margin.learn(10, 10, n - 20_000.0)
    return margin


def test_it_stays_within_what_can_be_recovered_from_and_without_news_it_narrows() -> None:
    margin = widened()
    assert margin.value(0.0) == margin.value(900.0) == 4.0
    assert margin.value(2_000.0) == pytest.approx(START + (4.0 - START) / 2, rel=1e-3)
    assert margin.value(60_000.0) == pytest.approx(START)
    margin.learn(0, 1, 2_000.0)
    assert margin.value(2_000.0) < START + (4.0 - START) / 2


def test_a_narrow_margin_is_kept_however_long_nothing_is_heard() -> None:
    margin = Margin(value=0.1)
    margin.learn(0, 1, 0.0)
    assert margin.value(1e9) == margin.value(0.0) < 0.1


def test_long_budgets_and_short_ones_learn_apart_and_a_new_kind_begins_with_what_all_have_learnt() -> None:
    margins = Margins()
    for n in range(200):
        margins.learn([(50.0, False), (5_000.0, n % 5 == 0)], float(n))
    assert margins.value(class_of(50.0), 200.0) < margins.value(class_of(5_000.0), 200.0)
    assert (
        margins.value(class_of(50.0), 200.0)
        < margins.value(class_of(1e9), 200.0)
        < margins.value(class_of(5_000.0), 200.0)
    )
    assert margins.value(class_of(40.0), 200.0) == margins.value(class_of(50.0), 200.0)
    margins.learn([(math.inf, True)], 201.0)
    assert margins.value(class_of(math.inf), 201.0) > margins.value(class_of(50.0), 201.0)


class Accepted(NamedTuple):
    """A request with a budget of 100 ms, of which it was told that it would take half."""

    arrived_ms: float
    droppable: bool = True
    predicted_ms: float = 50.0

    @property
    def deadline_ms(self) -> float:
        return self.arrived_ms + 100.0


def spare_of(promises: Promises, now_ms: float = 0.0) -> float:
    return promises.widths(100.0, now_ms)[1]


@pytest.mark.parametrize(
    ("in_time", "spreads"), [(0.0, 0.0), (0.99, 0.0), (0.999, 1.5), (0.9999, 3.0), (1.0, 3.0)]
)
def test_the_surer_the_more_time_to_spare(in_time: float, spreads: float) -> None:
    assert spare_start(in_time) == pytest.approx(spreads)
    assert spare_of(Promises(in_time)) == pytest.approx(spreads)


@pytest.mark.parametrize("stall_ms", [30.0, 60.0])
def test_as_many_of_the_accepted_are_in_time_as_was_asked_for(stall_ms: float) -> None:
    """A stall holds up one batch in 50; with time to spare, 20 ms a spread, its members are still in time."""
    draw, promises, missed, count = random.Random(5), Promises(0.999), 0, 60_000
    for n in range(count):
        now_ms = 40.0 * n
        left_ms = 20.0 * spare_of(promises, now_ms)
        late = draw.random() < 0.02 and draw.uniform(0.0, stall_ms) > left_ms
        missed += late
        promises.answered([Accepted(now_ms - (101.0 if late else 40.0))], now_ms)
    assert missed / count <= 0.001


def test_deadlines_that_are_missed_cost_time_to_spare_and_bounds_that_are_exceeded_do_not() -> None:
    promises = Promises(0.999)
    spare, margin = spare_of(promises), promises.widths(100.0, 0.0)[0]
    promises.answered([Accepted(-60.0)], 0.0)
    assert spare_of(promises) <= spare
    assert promises.widths(100.0, 0.0)[0] > margin
    promises.answered([Accepted(-60.0, droppable=False), Accepted(-101.0, droppable=False)], 0.0)
    assert spare_of(promises) <= spare
    promises.answered([Accepted(-101.0)], 0.0)
    assert spare_of(promises) > spare
    spare = spare_of(promises)
    promises.dropped([Accepted(-90.0)], 0.0)
    assert spare_of(promises) > spare


def test_where_nobody_has_to_be_sure_no_miss_costs_the_others_anything() -> None:
    promises = Promises(0.0)
    promises.dropped([Accepted(-90.0)] * 3, 0.0)
    promises.answered([Accepted(-60.0)] * 20, 1.0)
    assert spare_of(promises, 1.0) == pytest.approx(0.0, abs=0.02)
