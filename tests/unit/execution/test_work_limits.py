"""Working, starving and hanging are told apart by where a piece of work spends its time."""

from __future__ import annotations

import threading

import pytest

from workers.execution.work_limits import (
    LOAD_LIMIT,
    Spent,
    Threads,
    ThreadTimes,
    WorkLimit,
    exceeded,
    limit_for,
    spend,
)
from workers.execution.work_watch import WorkWatch, read_threads

LIMIT = WorkLimit(on_cpu_ms=100.0, blocked_ms=50.0)
ASLEEP = ThreadTimes(0.0, 0.0, is_runnable=False)


def at(on_cpu_ms: float, runnable_ms: float = 0.0, *, is_runnable: bool = False) -> ThreadTimes:
    return ThreadTimes(on_cpu_ms, runnable_ms, is_runnable)


@pytest.mark.parametrize(
    ("threads", "on_cpu_ms", "blocked_ms"),
    [
        ({1: at(10)}, 10, 0),  # it computes
        ({1: at(0, 10)}, 0, 0),  # it waited for a processor and got one
        (
            {1: at(0, 0, is_runnable=True)},
            0,
            0,
        ),  # it still waits for one, which is not counted yet
        ({1: at(0)}, 0, 10),  # a lock, a device
        ({1: at(4, 3)}, 4, 3),  # some of each
        ({1: at(0), 2: at(6), 3: at(4)}, 6, 0),  # a pool computes for it
        ({1: at(0), 2: at(0, 0, is_runnable=True)}, 0, 0),  # the pool starves
        ({1: at(0), 2: at(0)}, 0, 10),  # the pool hangs with it
        ({1: at(0), 2: at(10), 3: at(10), 4: at(10)}, 10, 0),  # several threads are no longer work
        ({1: at(5_000)}, 10, 0),  # never more than has passed
    ],
)
def test_time_is_split_in_computing_waiting_for_a_processor_and_being_blocked(
    threads: Threads, on_cpu_ms: float, blocked_ms: float
) -> None:
    before = dict.fromkeys(threads, ASLEEP)
    assert spend(Spent(), before, threads, 10.0) == Spent(on_cpu_ms, blocked_ms)
    assert spend(Spent(1.0, 2.0), before, threads, 10.0) == Spent(1.0 + on_cpu_ms, 2.0 + blocked_ms)


def test_a_thread_that_was_started_meanwhile_counts_with_all_its_time() -> None:
    assert spend(Spent(), {1: ASLEEP}, {1: ASLEEP, 2: at(7)}, 10.0) == Spent(7.0, 3.0)


def test_starving_is_never_too_long_but_computing_and_hanging_are() -> None:
    assert exceeded(Spent(100.0, 50.0), LIMIT) is None
    assert exceeded(Spent(100.1, 0.0), LIMIT) == "0.1001 s on CPU, where 0.1 s is the most"
    assert exceeded(Spent(0.0, 51.0), LIMIT) == "0.051 s blocked, where 0.05 s is the most"


def test_the_limit_follows_the_prediction_above_a_floor() -> None:
    assert limit_for(1.0) == WorkLimit(30_000.0, 30_000.0)
    assert limit_for(10_000.0) == WorkLimit(200_000.0, 200_000.0)
    assert limit_for(10.0, factor=3.0, floor_ms=20.0) == WorkLimit(30.0, 30.0)
    assert LOAD_LIMIT.blocked_ms >= 60_000.0


class Seen:
    """A watch on a clock and on times that the test sets."""

    def __init__(self) -> None:
        self.now_s, self.threads = 0.0, {1: ASLEEP}
        self.watch = WorkWatch(read=lambda older, main: dict(self.threads), clock=lambda: self.now_s)

    def after(self, seconds: float, times: ThreadTimes = ASLEEP) -> str | None:
        self.now_s += seconds
        self.threads = {1: times}
        return self.watch.look()


def test_a_piece_of_work_that_is_blocked_too_long_is_named_until_it_ends() -> None:
    seen = Seen()
    assert seen.after(1.0) is None
    with seen.watch.work("a batch of 3 rows", WorkLimit(1e9, 2_500.0)):
        assert [seen.after(1.0) for _ in range(3)] == [None, None, None]
        assert seen.after(1.0) == "a batch of 3 rows hangs: 3 s blocked, where 2.5 s is the most"
    assert seen.after(1.0) is None
    with seen.watch.work("the next one", WorkLimit(1e9, 2_500.0)):
        assert [seen.after(1.0) for _ in range(3)] == [None, None, None]


def test_many_pieces_of_work_are_each_judged_alone() -> None:
    seen = Seen()
    for _ in range(10):
        with seen.watch.work("a short one", WorkLimit(1e9, 1_500.0)):
            assert [seen.after(1.0), seen.after(1.0)] == [None, None]


def test_time_in_which_nobody_looked_says_nothing() -> None:
    seen = Seen()
    with seen.watch.work("a batch", WorkLimit(1e9, 20_000.0)):
        seen.after(1.0)
        assert seen.after(3_600.0) is None  # the machine was asleep


def test_what_cannot_be_read_condemns_nobody() -> None:
    now = [0.0]
    watch = WorkWatch(read=lambda older, main: {}, clock=lambda: now[0])
    with watch.work("a batch", WorkLimit(1.0, 1.0)):
        for _ in range(5):
            now[0] += 4.0
            assert watch.look() is None


def test_a_real_thread_is_seen_to_be_blocked_and_to_compute() -> None:
    go, there, ids = threading.Event(), threading.Event(), []
    older = {threading.get_native_id()}

    def body() -> None:
        ids.append(threading.get_native_id())
        sum(n * n for n in range(300_000))
        there.set()
        go.wait(60)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        assert there.wait(60)
        while (seen := read_threads(older, ids[0]))[ids[0]].is_runnable:
            pass  # on its way into the wait
        assert seen[ids[0]].on_cpu_ms > 0.0
        assert threading.get_native_id() not in seen
        before, after = seen, read_threads(older, ids[0])
        assert spend(Spent(), {ids[0]: before[ids[0]]}, {ids[0]: after[ids[0]]}, 10.0).blocked_ms > 9.0
    finally:
        go.set()
        thread.join()
