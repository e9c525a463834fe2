"""The dispatcher and replicas that differ: one that stops answering, one that is slower, one that dies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from router.online.dispatcher import DeadlineHopeless, OnlineAnswer, OnlineDispatcher, ReplicaFailed
from router.scheduling.tuning import BATCHES_IN_FLIGHT
from tests.support.replica import Replica, batch, run_ms, variant
from tests.support.virtual_time import in_virtual_time, now_ms, settled

#: From when a batch of one row was expected, until its replica counts as silent: see
#: `router.scheduling.scheduler`.
PATIENCE_MS = 100.0 + 4.0 * run_ms(1)


class Gate(Replica):
    """A replica that stands still while it is shut: its calls go on when it is opened again."""

    def __init__(self, shut: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.open = asyncio.Event()
        if not shut:
            self.open.set()

    async def send(self, name: str, message: bytes, replica: str = "") -> bytes:
        reply = await super().send(name, message, replica)
        await self.open.wait()
        return reply


def dispatcher(**replicas: Replica) -> OnlineDispatcher:
    async def send(name: str, message: bytes, replica: str) -> bytes:
        target = replicas.get(replica) or next(iter(replicas.values()))
        return await target.send(name, message, replica)

    made = OnlineDispatcher(
        {"v": variant()}, send, replicas=len(replicas), max_batch=8, max_waiting=100, clock=now_ms
    )
    made.set_replicas(list(replicas))
    return made


def ask(
    target: OnlineDispatcher, *values: float, budget_ms: float = 1_000.0, droppable: bool = True
) -> asyncio.Task[OnlineAnswer]:
    call = target.run("v", batch(*values), now_ms() + budget_ms, droppable=droppable)
    return asyncio.create_task(call)


def doubled(answer: OnlineAnswer) -> list[float]:
    values: list[float] = answer.outputs["y"].ravel().tolist()
    return values


@in_virtual_time
async def test_a_batch_that_its_replica_keeps_to_itself_is_answered_by_another() -> None:
    a, b = Gate(shut=True), Gate()
    target, began = dispatcher(a=a, b=b), now_ms()
    assert doubled(await ask(target, 3.0)) == [6.0]
    assert now_ms() - began == pytest.approx(run_ms(1) + PATIENCE_MS + run_ms(1), abs=5.0)
    assert (a.batches, b.batches) == ([[3.0]], [[3.0]])
    a.open.set()
    await settled()
    assert target.load().busy_ms == 0.0


@in_virtual_time
async def test_nothing_is_sent_to_a_silent_replica_until_it_answers_again() -> None:
    a, b = Gate(shut=True), Gate()
    target = dispatcher(a=a, b=b)
    await ask(target, 0.0)
    assert target.load().replicas == 1
    for number in range(1, 20):
        await ask(target, float(number))
    assert len(a.batches) == 1
    a.open.set()
    await settled()
    assert target.load().replicas == 2
    await asyncio.gather(*(ask(target, *[1.0] * 8) for _ in range(4)))
    assert len(a.batches) == 1 + BATCHES_IN_FLIGHT


@in_virtual_time
async def test_whose_deadline_passes_at_a_silent_replica_is_told_and_others_of_the_batch_are_answered() -> (
    None
):
    a = Gate(shut=True)
    target, began = dispatcher(a=a), now_ms()
    blocker = ask(target, *[0.0] * 8, budget_ms=60_000.0)
    short, long = ask(target, 1.0, budget_ms=400.0), ask(target, 2.0, budget_ms=60_000.0)
    with pytest.raises(DeadlineHopeless, match=r"^its deadline was 0\S* ms ago and its replica is silent$"):
        await short
    assert now_ms() - began == pytest.approx(400.0, abs=1.0)
    a.open.set()
    assert doubled(await long) == [4.0]
    await blocker


@in_virtual_time
async def test_a_late_answer_of_a_replica_that_is_not_silent_is_given_all_the_same() -> None:
    a = Gate(shut=True)
    target = dispatcher(a=a)
    late = ask(target, 1.0, budget_ms=30.0)
    await asyncio.sleep((run_ms(1) + PATIENCE_MS - 5.0) / 1_000.0)
    assert not late.done()
    a.open.set()
    assert doubled(await late) == [2.0]


@in_virtual_time
async def test_whose_deadline_passed_before_the_silence_was_one_is_told_then() -> None:
    target, began = dispatcher(a=Gate(shut=True)), now_ms()
    with pytest.raises(DeadlineHopeless, match="silent"):
        await ask(target, 1.0, budget_ms=30.0)
    assert now_ms() - began == pytest.approx(run_ms(1) + PATIENCE_MS, abs=2.0)


@in_virtual_time
async def test_who_wants_an_answer_however_late_waits_for_a_silent_replica() -> None:
    a = Gate(shut=True)
    target = dispatcher(a=a)
    waits = ask(target, 1.0, budget_ms=30.0, droppable=False)
    await asyncio.sleep(2.0)
    a.open.set()
    assert doubled(await waits) == [2.0]


@in_virtual_time
async def test_while_every_replica_is_silent_waiting_looks_as_long_as_the_silence() -> None:
    a = Gate(shut=True)
    target = dispatcher(a=a)
    stuck = ask(target, 1.0, budget_ms=60_000.0)
    await asyncio.sleep(1.0)
    assert target.load().busy_ms == pytest.approx(1_000.0, abs=30.0)
    a.open.set()
    await stuck
    assert target.load().busy_ms == 0.0


@in_virtual_time
async def test_when_both_tries_fail_the_callers_are_told_once() -> None:
    a, b = Replica(hangs=True), Replica(hangs=True)
    target, began = dispatcher(a=a, b=b), now_ms()
    with pytest.raises(ReplicaFailed, match="TimeoutError"):
        await ask(target, 1.0, budget_ms=60_000.0)
    assert (len(a.calls), len(b.calls)) == (1, 1)
    assert now_ms() - began < 5_000.0 + 20.0 * run_ms(1) + PATIENCE_MS + 50.0


@in_virtual_time
async def test_the_failure_of_the_first_try_does_not_disturb_the_second() -> None:
    a, b = Replica(hangs=True), Gate(shut=True)
    target = dispatcher(a=a, b=b)
    answer = ask(target, 1.0, budget_ms=60_000.0)
    await asyncio.sleep(5.25)  # the first has been given up on
    assert a.open_calls == 0
    assert not answer.done()
    b.open.set()
    assert doubled(await answer) == [2.0]


@in_virtual_time
async def test_closing_while_two_tries_are_away_leaves_nothing_behind() -> None:
    a, b = Gate(shut=True), Gate(shut=True)
    target = dispatcher(a=a, b=b)
    answer = ask(target, 1.0, budget_ms=60_000.0)
    await asyncio.sleep(0.5)
    assert (len(a.calls), len(b.calls)) == (1, 1)
    await target.close()
    with pytest.raises(ReplicaFailed, match="shutting down"):
        await answer
    assert len(asyncio.all_tasks()) == 1
