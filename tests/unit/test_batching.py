"""Which batch runs now: deadlines kept, hopeless heads dropped, no waiting on an idle device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizers.profile import LatencyProfile, ProfilePoint
from workers.batching import BoundTable, Idle, RunBatch, WaitUntil, next_batch, plan_batch


@dataclass(frozen=True)
class Item:
    deadline_ms: float
    rows: int = 1


#: l(n) = 9 + n ms, up to 16 rows; the bound is twice that.
PROFILE = LatencyProfile((ProfilePoint(1, 10.0, 20.0), ProfilePoint(16, 25.0, 50.0)))
TABLE = BoundTable.of(PROFILE)


def items(*deadlines: float) -> list[Item]:
    return [Item(d) for d in deadlines]


def test_everything_that_fits_runs_as_one_batch() -> None:
    assert next_batch(items(*[1000.0] * 5), TABLE, 0) == RunBatch(5, 5, 0, TABLE.bound_ms(5))


def test_the_largest_batch_is_the_limit() -> None:
    assert next_batch(items(*[1000.0] * 99), TABLE, 0) == RunBatch(16, 16, 0, 50.0)


def test_the_earliest_deadline_limits_the_batch() -> None:
    # 28 ms hold 5 rows by the bound (18 + 2 n); the others have all the time in the world.
    decision = next_batch(items(28.0, *[9e9] * 20), TABLE, 0)
    assert isinstance(decision, RunBatch)
    assert decision.count == 5
    assert decision.bound_ms == pytest.approx(28.0)


def test_a_head_that_only_the_median_can_meet_runs_alone() -> None:
    assert next_batch(items(15.0, 9e9), TABLE, 0) == RunBatch(1, 1, 0, 20.0)


def test_hopeless_heads_are_dropped_and_do_not_shrink_the_batch() -> None:
    decision = next_batch(items(1.0, 9.9, *[1000.0] * 20), TABLE, 0)
    assert isinstance(decision, RunBatch)
    assert (decision.dropped, decision.count) == (2, 16)


def test_only_hopeless_ones_leave_nothing_to_run() -> None:
    assert next_batch(items(1.0, 2.0), TABLE, 0) == Idle(2)
    assert next_batch([], TABLE, 0) == Idle(0)


def test_an_idle_device_never_waits() -> None:
    assert next_batch(items(1e6), TABLE, 0) == RunBatch(1, 1, 0, 20.0)
    assert next_batch(items(1e6), TABLE, 100, busy_until_ms=100) == RunBatch(1, 1, 0, 20.0)
    assert next_batch(items(1e6), TABLE, 100, busy_until_ms=105, lead_ms=5) == RunBatch(1, 1, 0, 20.0)


def test_a_busy_device_lets_the_batch_grow_until_it_is_free() -> None:
    assert next_batch(items(1e6, 1e6), TABLE, 0, busy_until_ms=40) == WaitUntil(40.0, 0)


def test_but_never_past_the_moment_that_would_cost_a_deadline() -> None:
    # Two rows keep 22 ms, so a deadline of 65 must start at 43; the device is free at 41.
    assert next_batch(items(65.0, 1e6), TABLE, 0, busy_until_ms=41, lead_ms=1) == WaitUntil(40.0, 0)
    # One more row would no longer fit before 64: the batch is closed, there is nothing to wait for.
    assert next_batch(items(62.0, 1e6, 1e6), TABLE, 0, busy_until_ms=41).__class__ is RunBatch


def test_a_full_batch_goes_behind_a_busy_device_at_once() -> None:
    assert next_batch(items(*[1e6] * 16), TABLE, 0, busy_until_ms=40) == RunBatch(16, 16, 0, 50.0)


def test_nobody_is_dropped_for_a_forecast() -> None:
    # At 45 it would be too late, but the device may be free earlier than predicted: by 40, and no later.
    assert next_batch(items(50.0), TABLE, 0, busy_until_ms=45) == WaitUntil(40.0, 0)
    assert next_batch(items(50.0), TABLE, 39.9, busy_until_ms=45) == WaitUntil(40.0, 0)
    assert next_batch(items(50.0), TABLE, 40.0, busy_until_ms=45) == Idle(1)
    assert next_batch(items(5.0, 1e6), TABLE, 0, busy_until_ms=45) == WaitUntil(45.0, 1)


def test_rows_not_items_fill_a_batch() -> None:
    waiting = [Item(1e6, 6), Item(1e6, 6), Item(1e6, 6), Item(1e6, 1)]
    assert next_batch(waiting, TABLE, 0) == RunBatch(2, 12, 0, TABLE.bound_ms(12))


def test_an_item_larger_than_any_batch_runs_alone_in_pieces() -> None:
    assert next_batch([Item(1e6, 40), Item(1e6, 1)], TABLE, 0) == RunBatch(
        1, 40, 0, 50 + 50 + TABLE.bound_ms(8)
    )
    assert TABLE.predict_ms(32) == 50.0
    assert next_batch([Item(60.0, 40)], TABLE, 0) == Idle(1)


def test_it_looks_at_the_batch_and_one_item_beyond() -> None:
    seen = 0

    def endless() -> Iterator[Item]:
        nonlocal seen
        while True:
            seen += 1
            yield Item(1e6)

    next_batch(endless(), TABLE, 0)
    assert seen <= 17


def test_a_table_may_cap_or_extend_the_profile() -> None:
    assert BoundTable.of(PROFILE, 4).max_rows == 4
    assert BoundTable.of(PROFILE, 32).bound_ms(32) > 50.0
    with pytest.raises(ValueError, match="max_rows"):
        BoundTable.of(PROFILE, 0)


@given(
    deadlines=st.lists(st.floats(0, 200), max_size=40),
    rows=st.lists(st.integers(1, 20), min_size=40, max_size=40),
    busy=st.floats(0, 60),
    lead=st.floats(0, 5),
)
def test_a_batch_keeps_every_members_deadline_or_is_a_single_head(
    deadlines: list[float], rows: list[int], busy: float, lead: float
) -> None:
    waiting = [Item(d, n) for d, n in zip(sorted(deadlines), rows, strict=False)]
    decision = next_batch(waiting, TABLE, 0, busy_until_ms=busy, lead_ms=lead)
    start = max(lead, busy)
    assert all(x.deadline_ms <= lead + TABLE.predict_ms(x.rows) for x in waiting[: decision.dropped])
    match decision:
        case RunBatch(count, total, dropped, bound):
            members = waiting[dropped : dropped + count]
            assert (count, total) == (len(members), sum(x.rows for x in members))
            assert count >= 1
            if count > 1:
                assert total <= TABLE.max_rows
                assert all(start + bound <= x.deadline_ms + 1e-9 for x in members)
        case WaitUntil(until, _):
            assert 0 <= until <= max(busy, 0)
            assert busy > lead
        case Idle(dropped):
            assert dropped == len(waiting)


def test_the_caller_may_bound_the_batch_further_but_a_larger_item_still_runs_alone() -> None:
    assert next_batch(items(*[1000.0] * 9), TABLE, 0, most_rows=3) == RunBatch(3, 3, 0, TABLE.bound_ms(3))
    assert next_batch(items(*[1000.0] * 9), TABLE, 0, most_rows=99) == RunBatch(9, 9, 0, TABLE.bound_ms(9))
    big = [Item(1000.0, rows=7), *items(1000.0)]
    assert next_batch(big, TABLE, 0, most_rows=3) == RunBatch(1, 7, 0, TABLE.bound_ms(7))


def test_the_efficient_batch_is_the_smallest_one_at_that_share_of_the_best_throughput() -> None:
    # n / (9 + n): 0.64 rows/ms at 16 rows, four fifths of that at 9 and up.
    assert TABLE.efficient(0.8) == 10
    assert TABLE.efficient(1.0) == 16


def test_after_a_stall_heads_with_too_little_time_go_so_that_those_behind_them_can_be_met() -> None:
    # 22 ms hold two rows; a batch of six needs 30.
    late, fine = items(*[22.0] * 3), items(*[1000.0] * 9)
    assert next_batch([*late, *fine], TABLE, 0, waiting_rows=12) == RunBatch(2, 2, 0, TABLE.bound_ms(2))
    decision = next_batch([*late, *fine], TABLE, 0, least_rows=6, waiting_rows=12)
    assert decision == RunBatch(9, 9, 3, TABLE.bound_ms(9))


def test_but_only_while_enough_waits_behind_them_and_the_device_is_free() -> None:
    late, fine = items(*[22.0] * 3), items(*[1000.0] * 4)
    # Seven wait: one may go, not a second.
    decision = next_batch([*late, *fine], TABLE, 0, least_rows=6, waiting_rows=7)
    assert decision == RunBatch(2, 2, 1, TABLE.bound_ms(2))
    assert isinstance(next_batch(late, TABLE, 0, least_rows=6, waiting_rows=3), RunBatch)
    busy = next_batch([*items(60.0), *fine], TABLE, 0, busy_until_ms=40, least_rows=5, waiting_rows=5)
    assert not busy.dropped


def test_a_free_worker_passes_over_heads_that_leave_no_time_for_a_decent_batch_and_keeps_them() -> None:
    tight, relaxed = items(22.0, 24.0), items(*[1_000.0] * 20)
    hopeless, chosen = plan_batch([*items(9.0), *tight, *relaxed], TABLE, 0.0, least_rows=8)
    assert hopeless == items(9.0)
    assert chosen == relaxed[:16]
    later, _ = plan_batch([*tight, *relaxed[16:]], TABLE, 25.0, least_rows=8)
    assert later == tight


def test_a_free_worker_runs_a_tight_head_where_little_waits_behind_it() -> None:
    assert plan_batch(items(22.0, 1_000.0, 1_000.0), TABLE, 0.0, least_rows=8) == ([], items(22.0, 1_000.0))


@given(
    st.lists(st.tuples(st.floats(0.0, 100.0), st.integers(1, 30)), max_size=40),
    st.integers(1, 16),
)
def test_a_free_worker_gives_up_only_what_is_hopeless_and_never_sits_idle(
    found: list[tuple[float, int]], least_rows: int
) -> None:
    waiting = [Item(deadline_ms, rows) for deadline_ms, rows in sorted(found)]
    while waiting:
        hopeless, chosen = plan_batch(waiting, TABLE, 0.0, least_rows)
        assert all(TABLE.predict_ms(item.rows) > item.deadline_ms for item in hopeless)
        assert all(TABLE.predict_ms(item.rows) <= item.deadline_ms for item in chosen[:1])
        assert hopeless or chosen
        for item in (*hopeless, *chosen):
            waiting.remove(item)


@dataclass(frozen=True)
class Formed:
    deadline_ms: float
    form: str
    rows: int = 1


def of_form(item: Formed) -> str:
    return item.form


def formed(*found: tuple[float, str]) -> list[Formed]:
    return [Formed(*one) for one in found]


def test_a_batch_has_the_form_of_its_most_urgent_item_and_skips_the_others() -> None:
    waiting = formed((1e6, "a"), (1e6, "b"), (1e6, "a"), (1e6, "b"), (1e6, "b"))
    assert next_batch(waiting, TABLE, 0, form=of_form) == RunBatch(2, 2, 0, TABLE.bound_ms(2), 3)
    assert next_batch(waiting[1:], TABLE, 0, form=of_form) == RunBatch(3, 3, 0, TABLE.bound_ms(3), 1)
    assert next_batch(waiting, TABLE, 0) == RunBatch(5, 5, 0, TABLE.bound_ms(5))


def test_only_so_many_of_another_form_are_looked_past() -> None:
    def endless() -> Iterator[Formed]:
        yield Formed(1e6, "a")
        while True:
            yield Formed(1e6, "b")

    decision = next_batch(endless(), TABLE, 0, form=of_form)
    assert isinstance(decision, RunBatch)
    assert (decision.count, decision.rows) == (1, 1)


def test_a_head_is_not_dropped_for_the_sake_of_those_that_cannot_join_its_batch() -> None:
    waiting = formed((22.0, "a"), *[(1000.0, "b")] * 9)
    rows = {"a": 1, "b": 9}
    decision = next_batch(waiting, TABLE, 0, least_rows=6, waiting_rows=10, form=of_form, form_rows=rows)
    assert decision == RunBatch(1, 1, 0, TABLE.bound_ms(1), 9)
    alike = next_batch(waiting, TABLE, 0, least_rows=6, waiting_rows=10)
    assert alike.dropped == 1


@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.sampled_from("abc")), max_size=40), st.integers(1, 16))
def test_a_free_worker_runs_one_form_at_a_time_and_gives_up_only_what_is_hopeless(
    found: list[tuple[float, str]], least_rows: int
) -> None:
    waiting = formed(*sorted(found))
    while waiting:
        hopeless, chosen = plan_batch(waiting, TABLE, 0.0, least_rows, form=of_form)
        assert all(TABLE.predict_ms(item.rows) > item.deadline_ms for item in hopeless)
        assert len({item.form for item in chosen}) <= 1
        assert hopeless or chosen
        for item in (*hopeless, *chosen):
            waiting.remove(item)
