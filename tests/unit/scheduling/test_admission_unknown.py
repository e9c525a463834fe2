"""What `decide` makes of a queue of which nothing is known, or which did not take a request."""

from __future__ import annotations

from typing import Any

import pytest

from router.policy import Policy
from router.policy.facts import MeasuredVariant
from router.scheduling.admission import Decision, Enqueue, Reject, RouteFacts, RunOnline, decide
from router.scheduling.prediction import BatchLoad, ModelLoad, OnlineLoad, UnknownQueue, batch_load
from tests.support.replica import variant

NOW_MS = 1_000.0
#: 1 ms a row; nothing runs or waits.
V = variant("v")
IDLE = OnlineLoad({"v": V}, 1, 0.0, 0.0)
UNKNOWN = UnknownQueue(V)


def policy(*routes: dict[str, Any]) -> Policy:
    model = {"artifacts": "a", "online": {"variants": ["v"]}, "batch": {"variant": "v"}}
    return Policy.model_validate({"models": {"m": model}, "routes": list(routes)})


AUTO = policy({"name": "r", "to": "auto"})


def without_queue(ask: RouteFacts, chosen: Policy, online: OnlineLoad, spent_ms: float) -> Decision:
    """The decision that is made once the queue has not taken the request in ``spent_ms``."""
    return decide(ask._replace(spent_ms=spent_ms), chosen, ModelLoad(online, None), NOW_MS + spent_ms)


def test_auto_does_not_take_a_queue_of_which_nothing_is_known() -> None:
    decision = decide(RouteFacts("m", 1, 60_000.0), AUTO, ModelLoad(IDLE, UNKNOWN), NOW_MS)
    assert isinstance(decision, RunOnline)


def test_auto_is_refused_for_what_the_online_side_says_while_the_queue_is_unknown() -> None:
    decision = decide(
        RouteFacts("m", 1, 60_000.0), AUTO, ModelLoad(IDLE._replace(full=True), UNKNOWN), NOW_MS
    )
    assert isinstance(decision, Reject) and decision.kind == "full"


@pytest.mark.parametrize(("to", "online"), [("batch", IDLE), ("batch", None), ("auto", None)])
def test_an_unknown_queue_is_tried_without_a_prediction_where_there_is_no_other_way(
    to: str, online: OnlineLoad | None
) -> None:
    decision = decide(
        RouteFacts("m", 1, 100.0), policy({"name": "r", "to": to}), ModelLoad(online, UNKNOWN), NOW_MS
    )
    assert isinstance(decision, Enqueue)
    assert decision.predicted_ms is None
    assert decision.patience_ms is None, "nobody else could run it"


def test_an_unknown_queue_is_not_tried_below_the_quality_floor() -> None:
    rough = UnknownQueue(MeasuredVariant("rough", V.profile, 0.5))
    chosen = policy({"name": "r", "to": "batch", "quality": {"max_drop": 0.1}})
    assert isinstance(decide(RouteFacts("m", 1, 100.0), chosen, ModelLoad(IDLE, rough), NOW_MS), Reject)


@pytest.mark.parametrize("budget_ms", [60.0, 500.0, 2_000.0, 60_000.0])
@pytest.mark.parametrize("busy_ms", [0.0, 20.0])
def test_what_is_left_after_a_failed_submit_suffices_to_run_online(budget_ms: float, busy_ms: float) -> None:
    online = IDLE._replace(busy_ms=busy_ms, prediction_margin=0.5)
    ask, queue = RouteFacts("m", 1, budget_ms), batch_load(V, 1, 8, 0, None)
    decision = decide(ask, AUTO, ModelLoad(online, queue), NOW_MS)
    assert isinstance(decision, Enqueue) and decision.patience_ms is not None
    assert 5.0 <= decision.patience_ms <= 1_000.0
    spent_ms = decision.patience_ms
    instead = without_queue(ask, AUTO, online, spent_ms)
    assert isinstance(instead, RunOnline)
    assert instead.predicted_ms <= budget_ms - spent_ms
    assert instead.deadline_ms == pytest.approx(decision.deadline_ms)


def test_a_request_stays_with_its_route_whatever_is_left_of_its_budget() -> None:
    chosen = policy(
        {"name": "urgent", "when": {"budget": "<= 250ms"}, "to": "online", "on_miss": ["reject"]},
        {"name": "relaxed", "to": "auto"},
    )
    instead = without_queue(RouteFacts("m", 1, 300.0), chosen, IDLE, 100.0)
    assert instead.route == "relaxed"


def test_nothing_is_promised_once_the_budget_is_spent() -> None:
    assert isinstance(without_queue(RouteFacts("m", 1, 300.0), AUTO, IDLE, 400.0), Reject)


def test_an_answer_through_an_empty_queue_is_predicted_no_sooner_than_one_was_seen() -> None:
    queue = BatchLoad(V, 1, 0, rows_per_s=1e6, max_batch=8, least_ms=14.0)
    alone = decide(RouteFacts("m", 1, 1_000.0), AUTO, ModelLoad(IDLE, queue), NOW_MS)
    assert isinstance(alone, Enqueue) and alone.predicted_ms == 14.0
    hurried = decide(RouteFacts("m", 1, 25.0), AUTO, ModelLoad(IDLE, queue), NOW_MS)
    assert isinstance(hurried, RunOnline), "twice 14 ms is more than there is"
