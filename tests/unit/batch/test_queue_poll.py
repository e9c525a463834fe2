"""One thread looks at a queue, however often a scaling policy is made anew; it survives what goes wrong."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.batch.test_autoscale import STATS
from workers.batch import queue_poll
from workers.batch.autoscale import QueuePolicy
from workers.queue.contract import TOTALS, QueueStats, QueueUnavailable
from workers.queue.memory.queue import MemoryQueue

SEEN = replace(STATS, totals=dict.fromkeys(TOTALS, 0))


class Seen(MemoryQueue):
    """Fails as often as it is told to, and says when it was looked at."""

    def __init__(
        self, looked: threading.Semaphore, errors: list[Exception], reaping: list[Exception]
    ) -> None:
        super().__init__("m")
        self._looked, self._errors, self._reaping = looked, errors, reaping

    async def reap(self) -> int:
        if self._reaping:
            raise self._reaping[0]
        return 0

    async def stats(self) -> QueueStats:
        self._looked.release()
        if self._errors:
            raise self._errors.pop(0)
        return SEEN


class World:
    """Stands in for the queue's server, and remembers who opened which queue."""

    def __init__(self) -> None:
        self.looked = threading.Semaphore(0)
        self.errors: list[Exception] = []
        self.reaping: list[Exception] = []
        self.opened: list[tuple[Any, ...]] = []

    def open_queue(self, *args: Any) -> MemoryQueue:
        self.opened.append(args)
        return Seen(self.looked, self.errors, self.reaping)

    def threads(self) -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name == "m queue poll"]

    def looks(self, count: int) -> None:
        for _ in range(count):
            assert self.looked.acquire(timeout=30)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World()
    monkeypatch.setattr(queue_poll, "open_queue", made.open_queue)
    yield made
    gc.collect()
    for thread in made.threads():
        thread.join(30)
    assert not made.threads()
    assert not queue_poll._polls


def policy(**more: Any) -> QueuePolicy:
    return QueuePolicy("redis://here", "m", 100.0, poll_s=0.01, **more)


class Context:
    current_num_replicas, target_num_replicas = 1, 7


def wanted(of: QueuePolicy) -> int:
    return of(Context())[0]  # type: ignore[arg-type]


def eventually(check: Callable[[], bool], world: World) -> bool:
    """Whether it holds within some looks at the queue."""
    for _ in range(200):
        if check():
            return True
        world.looks(1)
    return False


def test_however_often_a_policy_is_made_one_thread_looks_with_the_last_settings(world: World) -> None:
    kept = [policy(queue_settings={"max_jobs": n}) for n in range(1, 6)]
    assert eventually(lambda: world.opened[-1:] == [("redis://here", "m", "hr", {"max_jobs": 5})], world)
    assert len(world.threads()) == 1
    assert eventually(lambda: {wanted(p) for p in kept} == {2}, world)  # also those made before


def test_the_thread_ends_with_the_last_policy(world: World) -> None:
    first, second = policy(), policy()
    world.looks(3)
    (thread,) = world.threads()
    del first
    gc.collect()
    world.looks(3)
    assert thread.is_alive()
    del second
    gc.collect()
    thread.join(30)
    assert not thread.is_alive()
    again = policy()
    world.looks(2)
    assert len(world.threads()) == 1
    assert again is not None


def test_another_queue_has_a_thread_of_its_own(world: World) -> None:
    both = policy(), policy(namespace="other")
    world.looks(4)
    assert len(world.threads()) == 2
    assert {args[2] for args in world.opened} == {"hr", "other"}
    assert len(both) == 2


@pytest.mark.parametrize("error", [QueueUnavailable("away"), RuntimeError("a fault of ours"), KeyError("x")])
def test_any_error_is_logged_and_survived(
    world: World, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    world.errors += [error] * 3
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        made = policy()
        world.looks(5)
        assert eventually(lambda: wanted(made) == 2, world)
    logged = [r.getMessage() for r in caplog.records]
    assert [text for text in logged if "(1 times)" in text and type(error).__name__ in text]
    assert len(logged) == 2  # of three in a row, the first and the second


def test_a_queue_that_cannot_be_reaped_is_still_seen(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.reaping.append(QueueUnavailable("refused"))
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        made = policy()
        world.looks(9)
        assert eventually(lambda: wanted(made) == 2, world)
    assert 0 < len(caplog.records) < 8


def test_while_nothing_was_seen_the_target_stays(world: World) -> None:
    world.errors += [QueueUnavailable("away")] * 3
    made = policy()
    assert wanted(made) == 7
    world.looks(5)


def test_jobs_that_vanish_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    log = queue_poll.OrphanLog("m")
    with caplog.at_level(logging.ERROR, logger="ray.serve"):
        for count in (3, 3, 5, 5):
            log.note(replace(SEEN, totals={**SEEN.totals, "orphaned": count}))
    assert [r.getMessage().startswith("model m: 2 queued jobs lost") for r in caplog.records] == [True]
