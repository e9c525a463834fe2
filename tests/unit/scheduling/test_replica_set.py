"""What a router learns of each replica: its pace, how much of it others take, and that it is silent."""

from __future__ import annotations

import pytest

from router.scheduling.replica_set import BATCHES_IN_FLIGHT, Fleet, Member

RUN_MS, HOP_MS = 10.0, 2.0


def fleet(*names: str) -> Fleet:
    made = Fleet(1)
    made.become(names)
    return made


def member(of: Fleet, name: str) -> Member:
    return next(each for each in of if each.name == name)


def run(of: Fleet, at: Member, now_ms: float, wait_ms: float = 0.0, others_ms: float = 0.0) -> None:
    """One batch of 10 ms that waited ``wait_ms``, before which others ran ``others_ms``."""
    number = of.depart(at, now_ms, now_ms + HOP_MS / 2 + RUN_MS, 100.0)
    back_ms = now_ms + HOP_MS + wait_ms + RUN_MS
    flight = of.arrive(number)
    assert flight
    of.answered(flight, back_ms)
    of.learn(flight, back_ms, RUN_MS, wait_ms, HOP_MS, (at.ran_ms or 0.0) + others_ms + RUN_MS)


def test_a_replica_has_room_for_two_batches_and_the_one_that_is_free_first_is_found() -> None:
    two = fleet("a", "b")
    for _ in range(2 * BATCHES_IN_FLIGHT):
        ready = two.ready()
        assert ready
        two.depart(ready, 0.0, 10.0 + len(two.flights) * (1.0 + ready.busy_until_ms), 100.0)
    assert two.ready() is None
    assert not two.has_room
    full = two.full()
    assert full
    assert full.busy_until_ms == min(each.busy_until_ms for each in two)


def test_a_replica_three_times_as_slow_is_apart_after_a_few_batches_and_back_after_some_quick_ones() -> None:
    two = fleet("a", "b")
    a = member(two, "a")
    slow = next(n for n in range(1, 50) if two.pace(a, 3.0))
    assert slow <= 6
    assert (a.apart, two.usual, two.size) == (True, 1, 2)
    assert 1.0 < two.rooms < 2.0
    assert two.ready_apart() == [a]
    assert next(n for n in range(1, 50) if two.pace(a, 1.0)) <= 20
    assert (a.apart, two.rooms) == (False, 2.0)


def test_one_stall_sets_nobody_apart_and_a_lone_replica_never_is() -> None:
    two, one = fleet("a", "b"), fleet("a")
    assert not two.pace(member(two, "a"), 1_000.0)
    for _ in range(100):
        one.pace(member(one, "a"), 3.0)
    assert not member(one, "a").apart
    assert one.usual == 1


def test_where_only_a_slow_replica_is_left_it_is_what_is_usual() -> None:
    two = fleet("a", "b")
    while not two.pace(member(two, "a"), 3.0):
        pass
    assert two.become(["a"]) == {"b"}
    assert not member(two, "a").apart
    assert two.ready() is member(two, "a")


def test_a_slow_replica_that_nothing_is_heard_of_is_to_be_tried() -> None:
    two = fleet("a", "b")
    run(two, member(two, "a"), 0.0)
    while not two.pace(member(two, "a"), 3.0):
        pass
    assert not two.unheard(500.0, 1_000.0)
    assert two.unheard(1_500.0, 1_000.0)


@pytest.mark.parametrize(("others_ms", "shared"), [(0.0, False), (0.3, False), (12.0, True)])
def test_what_a_replica_ran_beside_my_batches_others_asked_for(others_ms: float, shared: bool) -> None:
    one = fleet("a")
    a = member(one, "a")
    for number in range(200):
        run(one, a, number * 25.0, wait_ms=others_ms, others_ms=others_ms)
    assert a.usage == pytest.approx(others_ms / 25.0, abs=0.01)
    assert a.shared is shared
    assert a.wait_ms == pytest.approx(others_ms if shared else 0.0, abs=0.1)
    assert a.slots == (1 if shared else BATCHES_IN_FLIGHT)
    assert one.rooms == pytest.approx(1.0 - others_ms / 25.0 if shared else 1.0, abs=0.01)
    assert one.busy_ms(1e6) == pytest.approx(a.wait_ms)


def test_a_wait_behind_ones_own_batch_is_nobody_elses() -> None:
    one = fleet("a")
    a = member(one, "a")
    for number in range(50):
        sent_ms = number * 30.0
        first = one.depart(a, sent_ms, sent_ms + 11.0, 100.0)
        second = one.depart(a, sent_ms, sent_ms + 21.0, 100.0)
        for flight, back_ms, wait_ms in ((first, 12.0, 0.0), (second, 22.0, 10.0)):
            landed = one.arrive(flight)
            assert landed
            one.learn(landed, sent_ms + back_ms, RUN_MS, wait_ms, HOP_MS, (a.ran_ms or 0.0) + RUN_MS)
    assert (a.others_ms, a.usage) == (0.0, 0.0)


def test_a_replica_whose_batch_is_long_overdue_is_passed_over_until_it_answers() -> None:
    two = fleet("a", "b")
    a = member(two, "a")
    number = two.depart(a, 0.0, 10.0, 100.0)
    two.heed(109.0)
    assert two.size == 2
    two.heed(110.0)
    assert (a.silent, two.size, two.ready()) == (True, 1, member(two, "b"))
    second = two.depart(member(two, "b"), 110.0, 120.0, 100.0)
    two.heed(220.0)
    assert two.ready() is None
    assert two.size == 2  # none answers: they are what there is
    assert two.busy_ms(240.0) == pytest.approx(240.0 - 120.0)
    for flight in (two.arrive(number), two.arrive(second)):
        assert flight
        two.answered(flight, 300.0)
    assert two.size == 2
    assert not any(each.silent for each in two)


def test_the_batch_behind_a_silence_gets_its_own_time_once_the_first_is_back() -> None:
    one = fleet("a")
    a = member(one, "a")
    first, _ = one.depart(a, 0.0, 10.0, 100.0), one.depart(a, 0.0, 20.0, 100.0)
    one.heed(130.0)
    assert not one.has_room
    flight = one.arrive(first)
    assert flight
    assert one.answered(flight, 500.0)
    one.heed(599.0)
    assert one.ready() is a
    one.heed(600.0)
    assert one.ready() is None


def test_a_silent_replica_of_which_nothing_is_away_any_more_is_tried_again() -> None:
    one = fleet("a")
    number = one.depart(member(one, "a"), 0.0, 10.0, 100.0)
    one.heed(500.0)
    assert not one.has_room
    one.arrive(number)  # given up on
    assert one.ready() is member(one, "a")
