"""LatencyProfile: monotone, invertible, honest about extrapolation, corrected by live batches."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import pytest

from optimizers.profile import LatencyProfile, OnlineFit, ProfileError, ProfilePoint, fit, quantile

MEASURED = fit({1: [1.0, 1.1, 1.4], 8: [3.0, 3.2], 32: [9.0, 10.0]})


def test_predicts_the_measured_median_and_interpolates_between() -> None:
    assert MEASURED.predict_ms(1) == pytest.approx(1.1)
    assert MEASURED.predict_ms(8) == pytest.approx(3.1)
    assert MEASURED.predict_ms(20) == pytest.approx((3.1 + 9.5) / 2)


def test_bound_is_the_measured_tail_and_never_below_the_median() -> None:
    assert MEASURED.bound_ms(8) == pytest.approx(quantile([3.0, 3.2], 0.99))
    for rows in range(1, 200):
        assert MEASURED.bound_ms(rows) >= MEASURED.predict_ms(rows)


def test_extrapolates_along_the_fitted_line() -> None:
    step = MEASURED.predict_ms(65) - MEASURED.predict_ms(64)
    assert step == pytest.approx(MEASURED.per_row_ms)


def test_a_larger_batch_that_measured_faster_is_pooled_with_its_neighbour() -> None:
    profile = fit({1: [1.0], 2: [4.0], 4: [2.0], 8: [5.0]})
    assert [p.median_ms for p in profile.points] == [1.0, 3.0, 3.0, 5.0]


def test_the_line_recovers_fixed_and_per_row_cost() -> None:
    profile = fit({n: [2.0 + 0.5 * n] for n in (1, 2, 4, 8, 16)})
    assert profile.fixed_ms == pytest.approx(2.0)
    assert profile.per_row_ms == pytest.approx(0.5)


def test_one_measured_batch_size_is_taken_to_cost_by_the_row() -> None:
    profile = fit({4: [8.0]})
    assert profile.predict_ms(8) == pytest.approx(16.0)


def test_json_round_trip() -> None:
    profile = MEASURED.scaled(1.5, tail=2.0)
    assert LatencyProfile.from_json(profile.to_json()) == profile


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"points": []},
        {"points": [{"batch": 1}]},
        {"points": "x"},
        {"points": [{"batch": 1, "median_ms": math.nan, "p99_ms": 1}]},
        {"points": [{"batch": 1, "median_ms": 2, "p99_ms": 1}]},
        {"points": [{"batch": 0, "median_ms": 1, "p99_ms": 1}]},
        {"points": [{"batch": 1, "median_ms": 1, "p99_ms": 1}], "tail_factor": 0.5},
        {"points": [{"batch": n, "median_ms": 3 - n, "p99_ms": 3} for n in (1, 2)]},
        {"points": [{"batch": 2, "median_ms": 1, "p99_ms": 1}] * 2},
    ],
)
def test_what_is_no_profile_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(ProfileError):
        LatencyProfile.from_json(value)


@pytest.mark.parametrize("samples", [{}, {1: []}])
def test_nothing_measured_is_refused(samples: dict[int, list[float]]) -> None:
    with pytest.raises(ProfileError):
        fit(samples)


def test_without_live_samples_nothing_changes() -> None:
    assert OnlineFit(MEASURED).profile() is MEASURED


def test_live_batches_correct_a_machine_that_is_twice_as_slow() -> None:
    rng = random.Random(1)
    online = OnlineFit(MEASURED)
    for _ in range(300):
        rows = rng.choice((1, 4, 8, 32))
        online.add(rows, 2.0 * MEASURED.predict_ms(rows) * rng.uniform(0.97, 1.03))
    corrected = online.profile()
    for rows in (1, 8, 20, 32, 64):
        assert corrected.predict_ms(rows) == pytest.approx(2.0 * MEASURED.predict_ms(rows), rel=0.08)


def refitted(samples: Iterable[tuple[int, float]]) -> LatencyProfile:
    online = OnlineFit(MEASURED)
    for rows, ms in samples:
        online.add(rows, ms)
    return online.profile()


def test_live_batches_of_one_size_scale_the_whole_profile() -> None:
    corrected = refitted([(8, 6.2)] * 200)
    assert corrected.predict_ms(8) == pytest.approx(6.2, rel=0.05)
    assert corrected.predict_ms(32) > 1.5 * MEASURED.predict_ms(32)


def test_one_outlier_moves_the_prediction_little() -> None:
    corrected = refitted([(8, 3.1)] * 50 + [(8, 60.0)])
    assert corrected.predict_ms(8) < 2 * MEASURED.predict_ms(8)


def test_an_unsteady_load_raises_the_bound_and_a_steady_one_leaves_it() -> None:
    rng = random.Random(2)
    unsteady = refitted((8, 3.1 * (4.0 if rng.random() < 0.1 else 1.0)) for _ in range(800))
    steady = refitted((8, 3.1) for _ in range(800))
    assert unsteady.bound_ms(8) > 2 * steady.bound_ms(8)
    assert steady.bound_ms(8) == pytest.approx(MEASURED.bound_ms(8), rel=0.1)


@pytest.mark.parametrize("sample", [(0, 1.0), (8, -1.0), (8, math.nan), (8, math.inf), (8, 0.0)])
def test_a_sample_that_is_no_duration_is_ignored(sample: tuple[int, float]) -> None:
    assert refitted([sample]) is MEASURED


def test_a_point_by_hand_makes_a_profile() -> None:
    assert LatencyProfile((ProfilePoint(1, 2.0, 3.0),)).bound_ms(1) == 3.0
