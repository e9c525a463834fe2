"""Predicted finishes: what runs, what waits and the request itself add up, and the drain rate is honest."""

from __future__ import annotations

import pytest

from optimizers.profile import LatencyProfile, ProfilePoint
from router.policy.facts import MeasuredVariant
from router.scheduling.prediction import (
    BatchLoad,
    OnlineLoad,
    alone_ms,
    batch_ms,
    drain_rows_per_s,
    online_ms,
    outlook,
    overloaded,
)

#: 1 ms and 0.1 ms per row at the median, twice that at the tail.
PROFILE = LatencyProfile((ProfilePoint(1, 1.1, 2.2), ProfilePoint(100, 11.0, 22.0)))
VARIANT = MeasuredVariant("v", PROFILE)


def online(busy_ms: float = 0.0, waiting_ms: float = 0.0, replicas: int = 1) -> OnlineLoad:
    return OnlineLoad({"v": VARIANT}, replicas, busy_ms, waiting_ms, hop_ms=0.5)


def test_an_idle_replica_answers_in_the_usual_time_and_the_calls_overhead() -> None:
    assert online_ms(online(), "v", 1) == pytest.approx(1.1 + 0.5)
    assert online_ms(online(), "v", 100) == pytest.approx(11.0 + 0.5)


def test_what_runs_counts_in_full_and_what_waits_is_shared_by_the_replicas() -> None:
    assert online_ms(online(busy_ms=3.0, waiting_ms=40.0, replicas=4), "v", 1) == pytest.approx(3 + 10 + 1.6)


def test_a_request_joins_the_batch_that_waits_for_its_variant_and_not_that_of_another() -> None:
    load = online(waiting_ms=9.0)._replace(ahead={"v": (20, 4.0, 100)})
    assert online_ms(load, "v", 1) == pytest.approx(9.0 - 4.0 + PROFILE.predict_ms(21) + 0.5)
    assert online_ms(load._replace(variants={"w": VARIANT}), "w", 1) == pytest.approx(9.0 + 1.1 + 0.5)


def test_what_does_not_fit_one_batch_is_behind_others() -> None:
    load = online(waiting_ms=4.0)._replace(ahead={"v": (25, 4.0, 10)})
    assert online_ms(load, "v", 1) == pytest.approx(2 * PROFILE.predict_ms(10) + PROFILE.predict_ms(6) + 0.5)
    full = load._replace(ahead={"v": (30, 4.0, 10)})
    assert online_ms(full, "v", 10) == pytest.approx(4 * PROFILE.predict_ms(10) + 0.5)
    shared = load._replace(ahead={"v": (30, 4.0, 10)}, replicas=3)
    assert online_ms(shared, "v", 1) == pytest.approx(PROFILE.predict_ms(10) + PROFILE.predict_ms(1) + 0.5)
    slow = load._replace(ahead={"v": (4, 4.0, 10)})
    assert online_ms(slow, "v", 8) == pytest.approx(PROFILE.predict_ms(4) + PROFILE.predict_ms(8) + 0.5)
    assert online_ms(slow, "v", 30) == pytest.approx(PROFILE.predict_ms(4) + PROFILE.predict_ms(30) + 0.5)


@pytest.mark.parametrize(("busy_ms", "share"), [(0.0, 0.0), (1.35, 0.5), (2.7, 1.0), (10.0, 1.0)])
def test_the_margin_grows_with_the_root_of_what_is_ahead_and_the_likely_one_not_before_there_is_any(
    busy_ms: float, share: float
) -> None:
    load = online(busy_ms=busy_ms)._replace(prediction_margin=0.5)
    spread_ms = (2.7 * (busy_ms + 1.6)) ** 0.5
    assert alone_ms(load, "v", 1) == pytest.approx(2.7)
    assert online_ms(load, "v", 1) == pytest.approx(busy_ms + 1.6 + 0.5 * spread_ms)
    likely = busy_ms + 1.6 + 0.5 * share * spread_ms
    assert outlook(load, "v", 1).likely_ms == pytest.approx(max(2.7, likely))
    assert (likely < 2.7) == (busy_ms == 0.0)


@pytest.mark.parametrize(("busy_ms", "share"), [(0.0, 0.0), (1.35, 0.5), (10.0, 1.0)])
def test_time_to_spare_is_asked_for_where_there_is_work_ahead(busy_ms: float, share: float) -> None:
    load = online(busy_ms=busy_ms)._replace(prediction_margin=0.5, headroom_ms=6.0)
    assert outlook(load, "v", 1).headroom_ms == pytest.approx(6.0 * share)
    assert outlook(load, "v", 1).predicted_ms == online_ms(load._replace(headroom_ms=0.0), "v", 1)


def test_a_margin_that_no_work_ahead_explains_does_not_count_in_full() -> None:
    load = online(busy_ms=10.0)
    assert (
        outlook(load._replace(prediction_margin=4.0), "v", 1).likely_ms
        == outlook(load._replace(prediction_margin=3.0), "v", 1).likely_ms
    )
    assert online_ms(load._replace(prediction_margin=4.0), "v", 1) > online_ms(
        load._replace(prediction_margin=3.0), "v", 1
    )


def test_under_pressure_the_variant_counts_that_is_fastest_in_full_batches_not_in_single_rows() -> None:
    """As ONNX Runtime's dynamic int8 does for sentences: the fastest for one, not for eight."""
    one_by_one = LatencyProfile((ProfilePoint(1, 1.2, 1.5), ProfilePoint(8, 20.0, 25.0)))
    by_eight = LatencyProfile((ProfilePoint(1, 1.5, 1.5), ProfilePoint(8, 11.0, 15.0)))
    variants = {"a": MeasuredVariant("a", one_by_one), "b": MeasuredVariant("b", by_eight)}
    load = OnlineLoad(variants, 1, 0.0, 0.0, demand_rows_per_s=500.0, max_batch=8)
    assert overloaded(load, ("a", "b")) == ["a"]
    assert overloaded(load._replace(max_batch=1), ("a", "b")) == ["b"]


def queue(waiting_rows: int, rows_per_s: float = 1_000.0) -> BatchLoad:
    return BatchLoad(VARIANT, 1, waiting_rows, rows_per_s, max_batch=100)


def test_a_queued_request_waits_for_the_rows_ahead_at_the_drain_rate() -> None:
    assert batch_ms(queue(5_000), 1) - batch_ms(queue(0), 1) == pytest.approx(5_000.0)


def test_a_request_larger_than_a_batch_is_bounded_by_its_last_batch() -> None:
    assert batch_ms(queue(0), 1_000) == pytest.approx(1_000.0 + 22.0)


@pytest.mark.parametrize(
    ("waiting_rows", "seen", "expected"),
    [
        (0, None, 9_090.9),
        (0, 3.0, 9_090.9),  # an idle queue ends only what arrives
        (50, None, 9_090.9),
        (50, 4_000.0, 4_000.0),
        (50, 20_000.0, 20_000.0),
        (50, 3.0, 909.09),  # a backlog that has just begun
    ],
)
def test_the_drain_rate_is_the_seen_one_only_while_rows_wait(
    waiting_rows: int, seen: float | None, expected: float
) -> None:
    assert drain_rows_per_s(VARIANT, 1, 100, waiting_rows, seen) == pytest.approx(expected, rel=1e-4)


def test_the_profiled_rate_grows_with_the_workers_and_stays_within_the_profile() -> None:
    one = drain_rows_per_s(VARIANT, 1, 100, 0, None)
    assert drain_rows_per_s(VARIANT, 3, 100, 0, None) == pytest.approx(3 * one)
    assert drain_rows_per_s(VARIANT, 1, 10_000, 0, None) == one
