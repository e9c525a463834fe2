"""What a router learns of each replica: its pace, how much of it others take, and that it is silent."""

from __future__ import annotations

import pytest

from router.scheduling.replica_set import ReplicaSet
from router.scheduling.replica_state import ReplicaState
from router.scheduling.tuning import BATCHES_IN_FLIGHT

RUN_MS, HOP_MS = 10.0, 2.0


def replica_set(*names: str) -> ReplicaSet:
    made = ReplicaSet(1)
    made.set_replicas(names)
    return made


def replica(of: ReplicaSet, name: str) -> ReplicaState:
    return next(each for each in of if each.name == name)


def run(
    of: ReplicaSet, at: ReplicaState, now_ms: float, wait_ms: float = 0.0, others_ms: float = 0.0
) -> None:
    """One batch of 10 ms that waited ``wait_ms``, before which others ran ``others_ms``."""
    number = of.dispatch(at, now_ms, now_ms + HOP_MS / 2 + RUN_MS, 100.0)
    back_ms = now_ms + HOP_MS + wait_ms + RUN_MS
    batch = of.complete(number)
    assert batch
    of.answered(batch, back_ms)
    of.learn(batch, back_ms, RUN_MS, wait_ms, HOP_MS, (at.ran_ms or 0.0) + others_ms + RUN_MS)


def test_a_replica_has_room_for_two_batches_and_the_one_that_is_free_first_is_found() -> None:
    two = replica_set("a", "b")
    for _ in range(2 * BATCHES_IN_FLIGHT):
        ready = two.ready()
        assert ready
        two.dispatch(ready, 0.0, 10.0 + len(two.in_flight) * (1.0 + ready.busy_until_ms), 100.0)
    assert two.ready() is None
    assert not two.has_room
    full = two.full()
    assert full
    assert full.busy_until_ms == min(each.busy_until_ms for each in two)


def test_a_replica_three_times_as_slow_is_apart_after_a_few_batches_and_back_after_some_quick_ones() -> None:
    two = replica_set("a", "b")
    a = replica(two, "a")
    slow = next(n for n in range(1, 50) if two.pace(a, 3.0))
    assert slow <= 6
    assert (a.slow, two.usual, two.size) == (True, 1, 2)
    assert 1.0 < two.rooms < 2.0
    assert two.ready_slow() == [a]
    assert next(n for n in range(1, 50) if two.pace(a, 1.0)) <= 20
    assert (a.slow, two.rooms) == (False, 2.0)


def test_one_stall_sets_nobody_apart_and_a_lone_replica_never_is() -> None:
    two, one = replica_set("a", "b"), replica_set("a")
    assert not two.pace(replica(two, "a"), 1_000.0)
    for _ in range(100):
        one.pace(replica(one, "a"), 3.0)
    assert not replica(one, "a").slow
    assert one.usual == 1


def test_where_only_a_slow_replica_is_left_it_is_what_is_usual() -> None:
    two = replica_set("a", "b")
    while not two.pace(replica(two, "a"), 3.0):
        pass
    assert two.set_replicas(["a"]) == {"b"}
    assert not replica(two, "a").slow
    assert two.ready() is replica(two, "a")


def test_a_slow_replica_that_nothing_is_heard_of_is_to_be_tried() -> None:
    two = replica_set("a", "b")
    run(two, replica(two, "a"), 0.0)
    while not two.pace(replica(two, "a"), 3.0):
        pass
    assert not two.has_untested(500.0, 1_000.0)
    assert two.has_untested(1_500.0, 1_000.0)


@pytest.mark.parametrize(("others_ms", "shared"), [(0.0, False), (0.3, False), (12.0, True)])
def test_what_a_replica_ran_beside_my_batches_others_asked_for(others_ms: float, shared: bool) -> None:
    one = replica_set("a")
    a = replica(one, "a")
    for number in range(200):
        run(one, a, number * 25.0, wait_ms=others_ms, others_ms=others_ms)
    assert a.usage == pytest.approx(others_ms / 25.0, abs=0.01)
    assert a.shared is shared
    assert a.wait_ms == pytest.approx(others_ms if shared else 0.0, abs=0.1)
    assert a.slots == (1 if shared else BATCHES_IN_FLIGHT)
    assert one.rooms == pytest.approx(1.0 - others_ms / 25.0 if shared else 1.0, abs=0.01)
    assert one.busy_ms(1e6) == pytest.approx(a.wait_ms)


def test_a_wait_behind_ones_own_batch_is_nobody_elses() -> None:
    one = replica_set("a")
    a = replica(one, "a")
    for number in range(50):
        sent_ms = number * 30.0
        first = one.dispatch(a, sent_ms, sent_ms + 11.0, 100.0)
        second = one.dispatch(a, sent_ms, sent_ms + 21.0, 100.0)
        for batch, back_ms, wait_ms in ((first, 12.0, 0.0), (second, 22.0, 10.0)):
            landed = one.complete(batch)
            assert landed
            one.learn(landed, sent_ms + back_ms, RUN_MS, wait_ms, HOP_MS, (a.ran_ms or 0.0) + RUN_MS)
    assert (a.others_ms, a.usage) == (0.0, 0.0)


def test_a_replica_whose_batch_is_long_overdue_is_passed_over_until_it_answers() -> None:
    two = replica_set("a", "b")
    a = replica(two, "a")
    number = two.dispatch(a, 0.0, 10.0, 100.0)
    two.mark_silent(109.0)
    assert two.size == 2
    two.mark_silent(110.0)
    assert (a.silent, two.size, two.ready()) == (True, 1, replica(two, "b"))
    second = two.dispatch(replica(two, "b"), 110.0, 120.0, 100.0)
    two.mark_silent(220.0)
    assert two.ready() is None
    assert two.size == 2  # none answers: they are what there is
    assert two.busy_ms(240.0) == pytest.approx(240.0 - 120.0)
    for batch in (two.complete(number), two.complete(second)):
        assert batch
        two.answered(batch, 300.0)
    assert two.size == 2
    assert not any(each.silent for each in two)


def test_the_batch_behind_a_silence_gets_its_own_time_once_the_first_is_back() -> None:
    one = replica_set("a")
    a = replica(one, "a")
    first, _ = one.dispatch(a, 0.0, 10.0, 100.0), one.dispatch(a, 0.0, 20.0, 100.0)
    one.mark_silent(130.0)
    assert not one.has_room
    batch = one.complete(first)
    assert batch
    assert one.answered(batch, 500.0)
    one.mark_silent(599.0)
    assert one.ready() is a
    one.mark_silent(600.0)
    assert one.ready() is None


def test_a_silent_replica_of_which_nothing_is_away_any_more_is_tried_again() -> None:
    one = replica_set("a")
    number = one.dispatch(replica(one, "a"), 0.0, 10.0, 100.0)
    one.mark_silent(500.0)
    assert not one.has_room
    one.complete(number)  # given up on
    assert one.ready() is replica(one, "a")
