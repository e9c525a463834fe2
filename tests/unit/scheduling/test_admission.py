"""The decision as a table: budget, load and route in; path, variant, time to retry and reason out."""

from __future__ import annotations

from typing import Any

import pytest

from optimizers.profile import LatencyProfile, ProfilePoint
from router.policy import Policy
from router.policy.facts import MeasuredVariant
from router.scheduling.admission import Decision, Enqueue, Reject, RouteFacts, RunOnline, decide
from router.scheduling.prediction import BatchLoad, ModelLoad, OnlineLoad, batch_ms

NOW_MS = 1_000_000.0


def flat(name: str, ms: float, drop: float = 0.0) -> MeasuredVariant:
    """A variant that takes ``ms`` for any batch of up to 100 rows."""
    return MeasuredVariant(name, LatencyProfile((ProfilePoint(1, ms, ms), ProfilePoint(100, ms, ms))), drop)


BEST, QUICK, ROUGH = flat("best", 40.0), flat("quick", 10.0, 0.01), flat("rough", 1.0, 0.2)


def online(**load: Any) -> OnlineLoad:
    variants = {v.name: v for v in (BEST, QUICK, ROUGH)}
    return OnlineLoad(**{"variants": variants, "replicas": 1, "busy_ms": 0.0, "waiting_ms": 0.0, **load})


def queue(waiting_rows: int = 0, variant: MeasuredVariant = QUICK) -> BatchLoad:
    return BatchLoad(variant, 1, waiting_rows, rows_per_s=1_000.0, max_batch=100)


def run(
    route: dict[str, Any],
    budget_ms: float,
    online_load: OnlineLoad | None = None,
    batch_load: BatchLoad | None = None,
    variant: str | None = None,
    rows: int = 1,
    draw: float = 0.0,
) -> Decision:
    model = {
        "artifacts": "a",
        "online": {"variants": ["best", "quick", "rough"]},
        "batch": {"variant": "quick"},
    }
    policy = Policy.model_validate({"models": {"m": model}, "routes": [{"name": "r", **route}]})
    return decide(
        RouteFacts("m", rows, budget_ms, variant, draw=draw),
        policy,
        ModelLoad(online_load, batch_load),
        NOW_MS,
    )


ONLINE: dict[str, Any] = {"to": "online"}
FLOOR: dict[str, Any] = {"to": "online", "quality": {"max_drop": 0.02}}
NEVER_REFUSES: dict[str, Any] = {"to": "online", "on_miss": ["degrade"]}
NO_DEGRADE: dict[str, Any] = {"to": "online", "on_miss": ["reject"]}


def test_a_request_counts_online_as_what_it_weighs() -> None:
    profile = LatencyProfile((ProfilePoint(1, 10.0, 10.0), ProfilePoint(10, 100.0, 100.0)))
    load = online(variants={"best": MeasuredVariant("best", profile)})
    policy = Policy.model_validate(
        {
            "models": {"m": {"artifacts": "a", "online": {"variants": ["best"]}}},
            "routes": [{"name": "r", **ONLINE}],
        }
    )
    usual, long = (
        decide(RouteFacts("m", 1, 50.0, row_cost=cost), policy, ModelLoad(load, None), NOW_MS)
        for cost in (1, 8)
    )
    assert isinstance(usual, RunOnline) and usual.predicted_ms == 10.0
    assert isinstance(long, Reject) and "predicted 80 ms" in long.reason


def test_an_idle_replica_refuses_what_its_bound_does_not_fit_though_half_would() -> None:
    tail = MeasuredVariant(
        "best", LatencyProfile((ProfilePoint(1, 10.0, 30.0), ProfilePoint(10, 20.0, 60.0)))
    )
    load = online(variants={"best": tail}, prediction_margin=4.0)
    assert isinstance(run(ONLINE, 31.0, load), RunOnline)
    assert isinstance(run(ONLINE, 29.0, load), Reject)


def test_jitter_picks_a_variant_but_refuses_nobody() -> None:
    jittery = {"hop_ms": 5.0, "prediction_margin": 9.0}
    kept = run(ONLINE, 50.0, online(**jittery))
    assert isinstance(kept, RunOnline)
    assert (kept.variant, kept.predicted_ms) == ("rough", 60.0)
    assert isinstance(run(ONLINE, 50.0, online(busy_ms=45.0, **jittery)), Reject)


@pytest.mark.parametrize(
    ("rows_per_s", "replicas", "chosen"),
    [
        (0.0, 1, "best"),
        (1_200.0, 1, "best"),
        (1_300.0, 1, "quick"),
        (1_300.0, 2, "best"),
        (5_500.0, 1, "rough"),
        (1e6, 1, "rough"),
    ],
)
def test_a_variant_that_cannot_keep_up_with_what_is_asked_for_is_left_to_calmer_times(
    rows_per_s: float, replicas: int, chosen: str
) -> None:
    # 100 rows in 40, 10 and 1 ms: 2,500, 10,000 and 100,000 rows/s, of which half is counted on.
    decision = run(ONLINE, 500.0, online(demand_rows_per_s=rows_per_s, replicas=replicas))
    assert isinstance(decision, RunOnline)
    assert decision.variant == chosen


def test_where_nothing_is_surely_in_time_pressure_still_decides_the_variant() -> None:
    # All three are only likely; under pressure it is the one with the highest throughput.
    wide = LatencyProfile((ProfilePoint(1, 12.0, 12.0), ProfilePoint(1_000, 13.0, 13.0)))
    variants = {"quick": QUICK, "rough": MeasuredVariant("rough", wide, 0.2)}
    crowd = online(variants=variants, demand_rows_per_s=1e5, prediction_margin=9.0)
    chosen = [run(ONLINE, 50.0, load) for load in (crowd, crowd._replace(demand_rows_per_s=0.0))]
    assert [getattr(decision, "variant", None) for decision in chosen] == ["rough", "quick"]


def test_what_is_predicted_in_time_is_never_refused_however_early_answers_come() -> None:
    # Recently degraded, it would need time to spare; and without its negative margin it would look too late.
    early = online(variants={"best": BEST}, busy_ms=30.0, prediction_margin=-0.5, recently_degraded=("best",))
    decision = run(ONLINE, 50.0, early)
    assert isinstance(decision, RunOnline)
    assert decision.predicted_ms <= 50.0 < 30.0 + 40.0


def test_the_reason_tells_pressure_from_a_deadline_that_is_too_short() -> None:
    told = [
        run(ONLINE, *asked).reason for asked in ((500.0, online(demand_rows_per_s=1_300.0)), (30.0, online()))
    ]
    assert told == ["degraded under pressure", "degraded to meet the deadline"]


def test_pressure_never_leaves_the_quality_floor_and_never_the_only_variant() -> None:
    crowd = online(demand_rows_per_s=1e6)
    kept = [run(FLOOR, 500.0, crowd), run(ONLINE, 500.0, crowd, variant="best")]
    assert [getattr(decision, "variant", None) for decision in kept] == ["quick", "best"]


def test_a_variant_that_was_passed_over_a_moment_ago_is_taken_again_with_time_to_spare_only() -> None:
    variants = {
        budget_ms: decision.variant
        for budget_ms in (45.0, 49.9, 50.0)
        if isinstance(decision := run(ONLINE, budget_ms, online(recently_degraded=("best",))), RunOnline)
    }
    assert variants == {45.0: "quick", 49.9: "quick", 50.0: "best"}


@pytest.mark.parametrize(
    ("budget_ms", "busy_ms", "degraded_from"),
    [(60.0, 30.0, "best"), (60.0, 0.0, None), (30.0, 0.0, None)],
    ids=["for want of time", "not at all", "too slow for that budget in any case"],
)
def test_only_what_the_work_ahead_left_no_time_for_counts_as_passed_over(
    budget_ms: float, busy_ms: float, degraded_from: str | None
) -> None:
    decision = run(ONLINE, budget_ms, online(busy_ms=busy_ms))
    assert isinstance(decision, RunOnline)
    assert decision.degraded_from == degraded_from


@pytest.mark.parametrize(
    ("route", "budget_ms", "busy_ms", "variant", "chosen"),
    [
        (ONLINE, 40.0, 0.0, None, "best"),
        (ONLINE, 39.9, 0.0, None, "quick"),
        (ONLINE, 9.9, 0.0, None, "rough"),
        (ONLINE, 40.0, 30.0, None, "quick"),
        (FLOOR, 20.0, 0.0, None, "quick"),
        (ONLINE, 50.0, 0.0, "rough", "rough"),
        (FLOOR, 50.0, 0.0, "rough", "rough"),  # the caller's pin is stronger than the floor
        (NEVER_REFUSES, 0.5, 0.0, None, "rough"),
        (NEVER_REFUSES, 0.5, 100.0, None, "rough"),
        (NO_DEGRADE, 40.0, 0.0, None, "best"),
    ],
)
def test_the_most_accurate_variant_that_meets_the_deadline_runs(
    route: dict[str, Any], budget_ms: float, busy_ms: float, variant: str | None, chosen: str
) -> None:
    decision = run(route, budget_ms, online(busy_ms=busy_ms), variant=variant)
    assert isinstance(decision, RunOnline)
    assert (decision.variant, decision.route) == (chosen, "r")
    assert decision.deadline_ms == NOW_MS + budget_ms


@pytest.mark.parametrize(
    ("route", "budget_ms", "load", "retry_after_s"),
    [
        # 50 ms wait and 1 ms run: in 41 ms there is room for a budget of 10.
        (ONLINE, 10.0, {"waiting_ms": 50.0}, 0.041),
        (ONLINE, 10.0, {"waiting_ms": 50.0, "replicas": 2}, 0.016),
        (ONLINE, 10.0, {"busy_ms": 50.0}, 0.041),
        (FLOOR, 10.0, {"busy_ms": 5.0}, 0.005),
        # Even an idle replica takes longer than that: no time to come back is promised.
        (ONLINE, 0.5, {}, None),
        (FLOOR, 5.0, {"busy_ms": 3.0}, None),
        (NO_DEGRADE, 39.0, {}, None),
        (NO_DEGRADE, 41.0, {"busy_ms": 10.0}, 0.009),
        # However wide the margin is, once nothing is ahead it is taken.
        (NO_DEGRADE, 41.0, {"busy_ms": 10.0, "prediction_margin": 4.0}, 0.010),
        (NO_DEGRADE, 39.0, {"busy_ms": 10.0, "prediction_margin": 4.0}, None),
    ],
)
def test_a_predicted_miss_is_refused_with_the_time_after_which_it_would_do(
    route: dict[str, Any], budget_ms: float, load: dict[str, float], retry_after_s: float | None
) -> None:
    decision = run(route, budget_ms, online(**load))
    assert isinstance(decision, Reject)
    assert decision.kind == "miss"
    assert decision.retry_after_s == pytest.approx(retry_after_s)
    assert f"the budget is {budget_ms:.3g} ms" in decision.reason


def test_a_refused_request_is_admitted_when_it_comes_back_as_told() -> None:
    refused = run(ONLINE, 10.0, online(busy_ms=50.0))
    assert isinstance(refused, Reject) and refused.retry_after_s is not None
    later = run(ONLINE, 10.0, online(busy_ms=50.0 - refused.retry_after_s * 1_000.0 - 1e-9))
    assert isinstance(later, RunOnline)


def test_a_full_heap_refuses_until_what_waits_has_run() -> None:
    decision = run(ONLINE, 1_000.0, online(full=True, waiting_ms=300.0, replicas=2))
    assert decision == Reject("full", 0.15, "r", "the online heap is full")


@pytest.mark.parametrize(
    ("route", "online_load", "batch_load", "variant", "said"),
    [
        (ONLINE, None, queue(), None, "model 'm' has no online side"),
        ({"to": "batch"}, online(), None, None, "model 'm' has no batch side"),
        ({"to": "auto"}, None, None, None, "model 'm' has no online or batch side"),
        (ONLINE, online(), None, "other", "no online variant of 'm' may serve this route"),
        ({"to": "batch", "quality": {"max_drop": 0.005}}, None, queue(), None, "quality floor"),
    ],
)
def test_what_the_policy_cannot_serve_is_refused_for_good(
    route: dict[str, Any],
    online_load: OnlineLoad | None,
    batch_load: BatchLoad | None,
    variant: str | None,
    said: str,
) -> None:
    decision = run(route, 60_000.0, online_load, batch_load, variant)
    assert isinstance(decision, Reject)
    assert (decision.kind, decision.retry_after_s) == ("unserved", None)
    assert said in decision.reason


def test_a_quality_floor_that_no_variant_meets_is_refused_for_good() -> None:
    only_rough = online(variants={"rough": ROUGH})
    decision = run(FLOOR, 1_000.0, only_rough)
    assert isinstance(decision, Reject) and decision.kind == "unserved"


BATCH: dict[str, Any] = {"to": "batch"}


def test_the_queue_takes_what_it_is_predicted_to_meet() -> None:
    decision = run(BATCH, 60_000.0, batch_load=queue(10_000))
    assert isinstance(decision, Enqueue)
    assert (decision.variant, decision.deadline_ms) == (None, NOW_MS + 60_000.0)
    assert decision.predicted_ms == pytest.approx(10_001.0 + 10.0)


def test_a_pinned_variant_goes_with_the_job_whatever_the_floor() -> None:
    route = BATCH | {"quality": {"max_drop": 0.001}}
    decision = run(route, 60_000.0, batch_load=queue(), variant="rough")
    assert isinstance(decision, Enqueue) and decision.variant == "rough"


def test_a_queue_too_long_for_the_deadline_refuses_with_the_time_until_it_is_not() -> None:
    decision = run(BATCH, 60_000.0, batch_load=queue(100_000))
    assert isinstance(decision, Reject) and decision.kind == "miss"
    assert decision.retry_after_s == pytest.approx((batch_ms(queue(100_000), 1) - 60_000.0) / 1_000.0)
    assert "100000 rows wait" in decision.reason


def test_a_budget_that_even_an_empty_queue_misses_is_promised_nothing() -> None:
    decision = run(BATCH, 5.0, batch_load=queue(100))
    assert isinstance(decision, Reject) and decision.retry_after_s is None


def test_a_route_that_never_refuses_queues_late_work_and_says_so() -> None:
    decision = run(BATCH | {"on_miss": ["degrade"]}, 5.0, batch_load=queue(100))
    assert isinstance(decision, Enqueue)
    assert decision.reason == "predicted late, and the route does not refuse"


AUTO: dict[str, Any] = {"to": "auto"}


@pytest.mark.parametrize(
    ("route", "budget_ms", "waiting_rows", "load", "kind"),
    [
        (AUTO, 1_000.0, 100, {}, Enqueue),  # half of the budget is enough for the queue
        (AUTO, 1_000.0, 600, {}, RunOnline),  # not sure enough
        (AUTO, 1_000.0, 600, {"busy_ms": 2_000.0}, Enqueue),  # but surer than the replicas
        (AUTO, 1_000.0, 6_000, {}, RunOnline),
        (AUTO, 1_000.0, 6_000, {"busy_ms": 2_000.0}, Reject),
        (AUTO | {"on_miss": ["degrade"]}, 1_000.0, 600, {"busy_ms": 2_000.0}, Enqueue),
        (AUTO | {"on_miss": ["degrade"]}, 1_000.0, 6_000, {"busy_ms": 2_000.0}, RunOnline),
        (AUTO | {"on_miss": ["degrade"]}, 1_000.0, 6_000, {"busy_ms": 9_000.0}, Enqueue),
    ],
)
def test_auto_takes_the_cheapest_path_that_is_predicted_to_be_in_time(
    route: dict[str, Any], budget_ms: float, waiting_rows: int, load: dict[str, float], kind: type
) -> None:
    assert isinstance(run(route, budget_ms, online(**load), queue(waiting_rows)), kind)


def test_auto_with_one_side_uses_that_one() -> None:
    assert isinstance(run(AUTO, 1_000.0, online_load=online()), RunOnline)
    assert isinstance(run(AUTO, 1_000.0, batch_load=queue(800)), Enqueue)


def test_auto_tells_the_refusal_that_may_pass_rather_than_the_one_for_good() -> None:
    route = AUTO | {"quality": {"max_drop": 0.005}}
    decision = run(route, 50.0, online(busy_ms=30.0), queue())
    assert isinstance(decision, Reject)
    assert decision.kind == "miss"
    assert decision.retry_after_s == pytest.approx(0.02)


def test_equal_input_gives_an_equal_decision() -> None:
    assert run(AUTO, 30.0, online(busy_ms=7.0), queue(3)) == run(AUTO, 30.0, online(busy_ms=7.0), queue(3))


@pytest.mark.parametrize(
    ("route", "budget_ms", "variant", "reason"),
    [
        ({"variants": ["quick", "rough"]}, 100.0, "quick", "the most accurate that the route allows"),
        ({"variants": "rough"}, 100.0, "rough", "the most accurate that the route allows"),
        ({"variants": ["best", "rough"]}, 20.0, "rough", "degraded to meet the deadline"),
        ({"margin": 0}, 45.0, "best", "the most accurate variant"),
        # 40 ms and a quarter on top do not fit into 45.
        ({"margin": 0.25}, 45.0, "quick", "degraded to meet the deadline"),
        ({"margin": "25%"}, 51.0, "best", "the most accurate variant"),
    ],
)
def test_a_route_narrows_the_variants_and_asks_for_time_to_spare(
    route: dict[str, Any], budget_ms: float, variant: str, reason: str
) -> None:
    decision = run({**ONLINE, **route}, budget_ms, online())
    assert isinstance(decision, RunOnline)
    assert (decision.variant, decision.reason) == (variant, reason)
    # The margin is the router's own: the deadline stays the caller's.
    assert decision.deadline_ms == NOW_MS + budget_ms


def test_a_refusal_for_want_of_margin_says_so_and_when_it_would_do() -> None:
    route = {"to": "online", "variants": "best", "margin": 1.0, "on_miss": ["reject"]}
    refused = run(route, 70.0, online())
    assert isinstance(refused, Reject) and refused.kind == "miss"
    assert refused.reason == "predicted 40 ms on 'best', the budget is 70 ms, with the route's margin 35 ms"
    assert refused.retry_after_s is None  # idle: waiting does not help
    busy = run(route, 100.0, online(busy_ms=20.0))
    assert isinstance(busy, Reject) and busy.retry_after_s == pytest.approx(0.01)
    assert isinstance(run(route, 100.0, online(busy_ms=9.9)), RunOnline)


def test_what_has_work_ahead_is_accepted_with_time_to_spare_only_and_a_refusal_says_so() -> None:
    # 60 ms in all, of which the request alone takes 40: half of what is spared is for the work ahead.
    busy = online(variants={"best": BEST}, busy_ms=20.0, headroom_ms=50.0)
    assert isinstance(run(ONLINE, 85.1, busy), RunOnline)
    refused = run(ONLINE, 80.0, busy)
    assert isinstance(refused, Reject)
    assert refused.reason == "predicted 60 ms on 'best' and 25 ms to be sure, the budget is 80 ms"
    assert refused.retry_after_s == pytest.approx(0.005)
    # Refusing mends the work ahead and nothing else, so an idle replica takes what it can.
    assert isinstance(run(ONLINE, 40.1, online(variants={"best": BEST}, headroom_ms=50.0)), RunOnline)
    # A route that does not refuse runs it as well as it can.
    assert isinstance(run({"to": "online", "on_miss": ["degrade"]}, 61.0, busy), RunOnline)


def test_time_to_spare_is_found_on_a_faster_variant() -> None:
    load = online(busy_ms=20.0)
    chosen = [run(ONLINE, 65.0, load._replace(headroom_ms=ms)) for ms in (0.0, 20.0)]
    assert [getattr(decision, "variant", None) for decision in chosen] == ["best", "quick"]


def test_the_queue_too_must_have_the_margin() -> None:
    route = {"to": "batch", "margin": 0.5}
    needed_ms = batch_ms(queue(1_000), 1)
    assert isinstance(run(route, needed_ms * 1.51, None, queue(1_000)), Enqueue)
    refused = run(route, needed_ms * 1.49, None, queue(1_000))
    assert isinstance(refused, Reject) and refused.kind == "miss"


SPLIT: dict[str, Any] = {"to": "online", "split": {"best": 80, "quick": 20, "rough": 0}}


@pytest.mark.parametrize(
    ("draw", "budget_ms", "variant", "reason"),
    [
        (0.0, 100.0, "best", "the split's variant"),
        (0.79, 100.0, "best", "the split's variant"),
        (0.81, 100.0, "quick", "the split's variant"),
        # The deadline comes before the shares, and what weighs nothing is never taken.
        (0.0, 20.0, "quick", "degraded to meet the deadline"),
    ],
)
def test_a_split_says_which_is_tried_first(draw: float, budget_ms: float, variant: str, reason: str) -> None:
    decision = run(SPLIT, budget_ms, online(), draw=draw)
    assert isinstance(decision, RunOnline)
    assert (decision.variant, decision.reason) == (variant, reason)
    assert isinstance(run(SPLIT, 5.0, online(), draw=draw), Reject)


def test_a_split_keeps_the_quality_floor_and_a_pinned_variant() -> None:
    floor = {**SPLIT, "quality": {"max_drop": 0.005}}
    kept = run(floor, 100.0, online(), draw=0.9)
    assert isinstance(kept, RunOnline) and kept.variant == "best"
    pinned = run(SPLIT, 100.0, online(), variant="rough", draw=0.9)
    assert isinstance(pinned, RunOnline)
    assert (pinned.variant, pinned.reason) == ("rough", "the variant that the caller pins")


@pytest.mark.parametrize(
    ("draw", "max_drop", "variant"), [(0.1, 0.5, "rough"), (0.1, 0.02, "best"), (0.9, 0.02, "best")]
)
def test_a_split_of_queued_work_keeps_the_quality_floor(draw: float, max_drop: float, variant: str) -> None:
    route = {"to": "batch", "split": {"rough": 1, "best": 1}, "quality": {"max_drop": max_drop}}
    queued = run(route, 60_000.0, online(), queue(), draw=draw)
    assert isinstance(queued, Enqueue)
    assert queued.variant == variant


def test_a_split_of_queued_work_that_is_all_below_the_floor_is_refused() -> None:
    route = {"to": "batch", "split": {"rough": 1}, "quality": {"max_drop": 0.02}}
    refused = run(route, 60_000.0, online(), queue())
    assert isinstance(refused, Reject)
    assert (refused.kind, refused.reason) == (
        "unserved",
        "no variant of the split is within the route's quality floor",
    )


def test_a_split_of_queued_work_names_the_variant_to_the_worker() -> None:
    route = {"to": "batch", "split": {"best": 1, "quick": 1}}
    for draw, variant in ((0.1, "best"), (0.6, "quick")):
        decision = run(route, 60_000.0, None, queue(), draw=draw)
        assert isinstance(decision, Enqueue) and decision.variant == variant


def test_a_batch_variant_that_the_route_does_not_allow_is_refused_for_good() -> None:
    refused = run({"to": "batch", "variants": "best"}, 60_000.0, None, queue())
    assert isinstance(refused, Reject)
    assert (refused.kind, refused.retry_after_s) == ("unserved", None)
    assert refused.reason == "the batch variant 'quick' is not among the route's variants"
    # With the other side there, auto goes that way.
    online_way = run({"to": "auto", "variants": "best"}, 60_000.0, online(), queue())
    assert isinstance(online_way, RunOnline) and online_way.variant == "best"
