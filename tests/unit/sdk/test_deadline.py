"""Limits of calls, and deadlines that calls share."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from router.sdk.deadline import DeadlineBlock, Limit, limit_of, shared_deadline_s


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


OWNER = object()


def limit(budget: str | float | timedelta | None, now_s: float = 100.0) -> Limit:
    return limit_of(budget, owner=OWNER, now_s=now_s, grace_s=1.0, timeout_s=30.0)


@pytest.mark.parametrize(
    ("budget", "seconds"),
    [
        ("50ms", 0.05),
        ("2s", 2),
        ("10min", 600),
        ("2h", 7_200),
        (timedelta(minutes=1), 60),
        (0.5, 0.5),
        (3, 3),
    ],
)
def test_a_budget_becomes_a_deadline_and_a_later_end_of_waiting(budget: str, seconds: float) -> None:
    got = limit(budget)
    assert got.deadline_s == pytest.approx(100.0 + seconds)
    assert got.give_up_s == pytest.approx(101.0 + seconds)


def test_without_a_budget_there_is_no_deadline_but_an_end() -> None:
    assert limit(None) == Limit(100.0, None, 130.0)


@pytest.mark.parametrize(
    "budget", ["-1s", "0ms", 0, -0.5, "31d", "soon", "50", float("nan"), float("inf"), True]
)
def test_what_is_no_budget_is_refused_with_what_is_allowed(budget: str) -> None:
    with pytest.raises(ValueError, match=r"50ms|above 0 and at most 30d|finite"):
        limit(budget)


@pytest.mark.parametrize(
    ("left_s", "header"),
    [(0.05, b"50"), (0.04998, b"50"), (3600, b"3600000"), (0.0042, b"4.20"), (-1.0, b"0.01")],
)
def test_the_header_carries_what_is_left(left_s: float, header: bytes) -> None:
    assert Limit(0.0, 100.0 + left_s, 200.0).budget_header(100.0) == header


def test_without_a_deadline_no_header_is_sent() -> None:
    assert Limit(0.0, None, 200.0).budget_header(100.0) is None


def test_calls_in_a_block_share_one_shrinking_budget() -> None:
    clock = Clock()
    with DeadlineBlock(OWNER, "2s", clock) as deadline:
        assert limit(None).deadline_s == 102.0
        clock.now = 101.5
        assert limit(None, clock.now).deadline_s == 102.0
        assert limit("10s", clock.now).deadline_s == 102.0
        assert limit("100ms", clock.now).deadline_s == pytest.approx(101.6)
        assert deadline.left_ms == pytest.approx(500)
        clock.now = 103.0
        assert deadline.left_ms == 0
    assert limit(None).deadline_s is None


def test_an_inner_block_only_shortens_and_an_error_ends_it() -> None:
    clock = Clock()
    with DeadlineBlock(OWNER, "2s", clock):
        with DeadlineBlock(OWNER, "10s", clock):
            assert shared_deadline_s(OWNER) == 102.0
        with pytest.raises(RuntimeError), DeadlineBlock(OWNER, "1s", clock):
            assert shared_deadline_s(OWNER) == 101.0
            raise RuntimeError
        assert shared_deadline_s(OWNER) == 102.0


def test_another_clients_calls_are_not_bound() -> None:
    other = object()
    with DeadlineBlock(OWNER, "2s", Clock()), DeadlineBlock(other, "1s", Clock()):
        assert shared_deadline_s(OWNER) == 102.0
        assert shared_deadline_s(other) == 101.0
        assert shared_deadline_s(object()) is None


async def test_tasks_that_are_started_in_the_block_share_its_budget_and_threads_do_not() -> None:
    async with DeadlineBlock(OWNER, "2s", Clock()) as deadline:
        assert deadline.at_s == 102.0

        async def seen() -> float | None:
            return shared_deadline_s(OWNER)

        assert await asyncio.gather(seen(), seen()) == [102.0, 102.0]
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, shared_deadline_s, OWNER) is None
    assert shared_deadline_s(OWNER) is None


def test_a_block_may_be_entered_again_and_begins_anew() -> None:
    clock = Clock()
    block = DeadlineBlock(OWNER, "2s", clock)
    with block as outer:
        clock.now = 101.0
        with block as inner:
            assert (outer.at_s, inner.at_s) == (102.0, 102.0)
    with block as later:
        assert later.at_s == 103.0
    assert shared_deadline_s(OWNER) is None


def test_a_budget_that_is_none_is_refused_before_the_block_begins() -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        DeadlineBlock(OWNER, "soon", Clock())


async def test_a_task_that_runs_beside_the_block_is_not_bound() -> None:
    entered, looked = asyncio.Event(), asyncio.Event()

    async def bound() -> None:
        with DeadlineBlock(OWNER, "2s", Clock()):
            entered.set()
            await looked.wait()

    task = asyncio.create_task(bound())
    await entered.wait()
    assert shared_deadline_s(OWNER) is None
    looked.set()
    await task
