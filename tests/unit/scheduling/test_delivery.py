"""The retry protocol of a batch: when it is sent again, dropped or failed, and which answer counts."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from router.policy.facts import MeasuredVariant
from router.scheduling.actions import BatchDispatch, Drop, Fail, SendBatch, WakeAt
from router.scheduling.delivery import BatchDelivery, RunTimes, give_up_after_ms
from router.scheduling.scheduler import Scheduler
from router.scheduling.tuning import MAX_ATTEMPTS
from tests.support.simulated import profile

TIMES = RunTimes(10.0, 0.0)


@dataclass(eq=False)
class Item:
    deadline_ms: float
    rows: int = 1
    droppable: bool = True
    left: bool = False
    arrived_ms: float = 0.0
    predicted_ms: float = 0.0


def sent(
    *deadlines_ms: float, replicas: int = 2, droppable: bool = True
) -> tuple[Scheduler[Item], BatchDispatch[Item]]:
    """A scheduler, and the first batch that it sends at time 0."""
    scheduler: Scheduler[Item] = Scheduler(
        {"v": MeasuredVariant("v", profile(9.0, 1.0))}, replicas=replicas, max_batch=8, max_waiting=100
    )
    for deadline_ms in deadlines_ms:
        scheduler.add("v", Item(deadline_ms, droppable=droppable))
    action = scheduler.step(0.0)[0]
    assert isinstance(action, SendBatch)
    return scheduler, action.batch


def test_only_the_first_answer_counts() -> None:
    scheduler, batch = sent(1_000.0)
    delivery = BatchDelivery(scheduler, batch)
    (action,) = [a for a in delivery.overdue(batch.silent_ms) if isinstance(a, SendBatch)]
    assert action.batch.replica != batch.replica
    assert delivery.answered(action.batch, 300.0, TIMES)
    assert delivery.is_open and delivery.all_answered
    assert not delivery.answered(batch, 310.0, TIMES)
    assert not delivery.is_open and scheduler.in_flight == 0


def test_a_failed_attempt_is_repeated_once_and_then_its_items_fail() -> None:
    scheduler, batch = sent(1_000.0, 1_000.0)
    delivery = BatchDelivery(scheduler, batch)
    for attempt in range(1, MAX_ATTEMPTS):
        (action,) = delivery.failed(batch, 10.0 * attempt)
        assert isinstance(action, SendBatch)
        batch = action.batch
    assert delivery.failed(batch, 100.0) == [Fail(batch.items)]
    assert not delivery.is_open and delivery.overdue(2_000.0) == []
    assert scheduler.in_flight == 0


def test_what_would_come_too_late_is_not_sent_again() -> None:
    scheduler, batch = sent(50.0)
    assert BatchDelivery(scheduler, batch).failed(batch, 50.0 - 0.5 * batch.bound_ms) == [Fail(batch.items)]


def test_a_failure_waits_for_the_attempt_that_is_still_open() -> None:
    scheduler, batch = sent(1_000.0)
    delivery = BatchDelivery(scheduler, batch)
    assert isinstance(delivery.overdue(batch.silent_ms)[0], SendBatch)
    assert delivery.failed(batch, 400.0) == []
    assert delivery.is_open and not delivery.all_answered


def test_a_failure_after_all_callers_left_is_nobodys() -> None:
    scheduler, batch = sent(1_000.0)
    delivery = BatchDelivery(scheduler, batch)
    batch.items[0].left = True
    assert delivery.failed(batch, 10.0) == [] and scheduler.in_flight == 0


def test_the_only_replica_is_tried_again_where_it_failed_and_not_where_it_is_silent() -> None:
    scheduler, batch = sent(1_000.0, replicas=1)
    silent = BatchDelivery(scheduler, batch)
    assert silent.overdue(batch.silent_ms) == [WakeAt(1_000.0)]
    (action,) = silent.failed(batch, 300.0)
    assert isinstance(action, SendBatch) and action.batch.replica == ""


@pytest.mark.parametrize("droppable", [True, False])
def test_an_overdue_batch_drops_what_is_too_late_and_looks_again_at_the_next_deadline(
    droppable: bool,
) -> None:
    scheduler, batch = sent(200.0, 900.0, replicas=1, droppable=droppable)
    first, second = batch.items
    delivery = BatchDelivery(scheduler, batch)
    expected = [Drop([first]), WakeAt(900.0)] if droppable else []
    assert delivery.overdue(250.0) == expected
    first.left = droppable
    assert delivery.overdue(900.0) == ([Drop([second])] if droppable else [])


def test_an_answer_that_cannot_be_used_frees_its_place() -> None:
    scheduler, batch = sent(1_000.0)
    delivery = BatchDelivery(scheduler, batch)
    delivery.discard(batch)
    assert not delivery.is_open and scheduler.in_flight == 0


def test_a_larger_batch_is_waited_for_longer() -> None:
    _, one = sent(1_000.0)
    _, three = sent(1_000.0, 1_000.0, 1_000.0)
    assert give_up_after_ms(one) == 5_000.0 + 20.0 * one.bound_ms
    assert give_up_after_ms(three) == 5_000.0 + 26.0 * three.bound_ms
