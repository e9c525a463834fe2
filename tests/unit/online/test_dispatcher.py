"""The online dispatcher in virtual time: who runs with whom and when, who is told what; nobody hangs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from optimizers.tensors import pack
from router.online.dispatcher import (
    BadRows,
    DeadlineHopeless,
    DispatchError,
    HeapFull,
    OnlineAnswer,
    OnlineDispatcher,
    ReplicaFailed,
)
from router.scheduling import prediction
from router.scheduling.tuning import BATCHES_IN_FLIGHT
from tests.support.replica import Replica, batch, run_ms, variant
from tests.support.virtual_time import in_virtual_time, now_ms, settled


def dispatcher(replica: Replica, *names: str, **settings: Any) -> OnlineDispatcher:
    chosen: dict[str, Any] = {"replicas": 1, "max_batch": 8, "max_waiting": 100, "clock": now_ms, **settings}
    return OnlineDispatcher({name: variant(name) for name in names or ("v",)}, replica.send, **chosen)


def ask(
    target: OnlineDispatcher,
    *values: float,
    budget_ms: float = 1_000.0,
    name: str = "v",
    droppable: bool = True,
) -> asyncio.Task[OnlineAnswer]:
    """One caller with its own deadline."""
    call = target.run(name, batch(*values), now_ms() + budget_ms, droppable=droppable)
    return asyncio.create_task(call)


def doubled(answer: OnlineAnswer) -> list[float]:
    values: list[float] = answer.outputs["y"].ravel().tolist()
    return values


async def busy(
    target: OnlineDispatcher, batches: int = BATCHES_IN_FLIGHT
) -> list[asyncio.Task[OnlineAnswer]]:
    """Fill the slots with full batches of zeros, so that what comes next waits."""
    tasks = [ask(target, *[0.0] * 8, budget_ms=60_000.0) for _ in range(batches)]
    await settled()
    return tasks


@in_virtual_time
async def test_a_lone_request_on_an_idle_replica_runs_at_once() -> None:
    replica = Replica()
    answer = await ask(dispatcher(replica), 3.0)
    assert doubled(answer) == [6.0]
    assert (answer.variant, answer.queued_ms, answer.batch_rows) == ("v", 0.0, 1)
    assert answer.run_ms == pytest.approx(run_ms(1))


@in_virtual_time
async def test_what_waited_while_the_replica_was_busy_runs_as_one_batch_most_urgent_first() -> None:
    replica = Replica()
    target = dispatcher(replica)
    await busy(target)
    budgets = {1.0: 900.0, 2.0: 300.0, 3.0: 600.0, 4.0: 300.0}
    tasks = [ask(target, value, budget_ms=budget) for value, budget in budgets.items()]
    answers = await asyncio.gather(*tasks)
    assert replica.batches[BATCHES_IN_FLIGHT:] == [[2.0, 4.0, 3.0, 1.0]]
    assert [doubled(a) for a in answers] == [[2.0], [4.0], [6.0], [8.0]]
    assert {a.batch_rows for a in answers} == {4}


@in_virtual_time
async def test_a_batch_is_no_larger_than_its_most_urgent_deadline_allows() -> None:
    replica = Replica()
    target = dispatcher(replica)
    tasks = await busy(target)
    # Two slots of 18 ms: the replica is free in 36 ms, and 14 ms later three rows are done, not four.
    urgent = ask(target, 1.0, budget_ms=51.0)
    others = [ask(target, float(n), budget_ms=5_000.0) for n in range(2, 8)]
    await asyncio.gather(urgent, *others, *tasks)
    assert replica.batches[2] == [1.0, 2.0, 3.0]


@in_virtual_time
async def test_every_batch_is_one_call_and_every_request_is_in_exactly_one() -> None:
    replica = Replica()
    target = dispatcher(replica)
    tasks = [ask(target, float(n), budget_ms=10_000.0 + n) for n in range(50)]
    answers = await asyncio.gather(*tasks)
    assert [doubled(a) for a in answers] == [[2.0 * n] for n in range(50)]
    assert sorted(v for values in replica.batches for v in values) == [float(n) for n in range(50)]
    assert max(map(len, replica.batches)) == 8
    assert len(replica.calls) <= 9


@pytest.mark.parametrize("replicas", [1, 3])
def test_at_most_two_batches_are_in_flight_for_each_replica(replicas: int) -> None:
    @in_virtual_time
    async def play() -> None:
        replica = Replica()
        target = dispatcher(replica, replicas=replicas, max_waiting=500)
        # Some of them hopeless and to be run all the same: they have no slots of their own.
        late = [ask(target, 0.0, budget_ms=1.0, droppable=False) for _ in range(20)]
        await asyncio.gather(*late, *(ask(target, float(n), budget_ms=60_000.0) for n in range(200)))
        assert replica.most_open_calls == replicas * BATCHES_IN_FLIGHT

    play()


@in_virtual_time
async def test_variants_never_share_a_batch() -> None:
    replica = Replica()
    target = dispatcher(replica, "a", "b")
    tasks = [ask(target, float(n), name="ab"[n % 2]) for n in range(12)]
    await asyncio.gather(*tasks)
    for call in replica.calls:
        assert {value % 2 for value in call.values} == {float("ab".index(call.variant))}


@in_virtual_time
async def test_a_request_larger_than_a_batch_is_split_and_joined_in_order() -> None:
    replica = Replica()
    values = [float(n) for n in range(20)]
    answer = await ask(dispatcher(replica), *values)
    assert doubled(answer) == [2.0 * v for v in values]
    assert [len(b) for b in replica.batches] == [8, 8, 4]
    assert answer.batch_rows == 8
    assert answer.run_ms == pytest.approx(2 * run_ms(8) + run_ms(4))


@in_virtual_time
async def test_a_caller_who_leaves_costs_no_work_and_the_others_are_answered() -> None:
    replica = Replica()
    target = dispatcher(replica, max_waiting=3)
    running = await busy(target)
    leaver, stayer, other = (ask(target, value) for value in (1.0, 2.0, 3.0))
    await settled()
    leaver.cancel()
    await settled()
    late_comer = ask(target, 4.0)  # the leaver's room is free again
    answers = await asyncio.gather(stayer, other, late_comer, *running)
    assert [doubled(a) for a in answers[:3]] == [[4.0], [6.0], [8.0]]
    assert leaver.cancelled()
    assert all(1.0 not in values for values in replica.batches)


@in_virtual_time
async def test_a_caller_of_a_split_request_who_leaves_takes_all_parts_along() -> None:
    replica = Replica()
    target = dispatcher(replica)
    await busy(target)
    leaver = ask(target, *[5.0] * 20)
    await settled()
    assert target.load().waiting_ms > 0
    leaver.cancel()
    await settled()
    assert target.load().waiting_ms == 0
    await ask(target, 1.0)
    assert replica.batches[BATCHES_IN_FLIGHT:] == [[1.0]]


@in_virtual_time
async def test_a_caller_who_leaves_while_his_batch_runs_does_not_disturb_it() -> None:
    replica = Replica()
    target = dispatcher(replica)
    await busy(target)
    leaver, stayer = ask(target, 1.0), ask(target, 2.0)
    while len(replica.calls) < 3:
        await asyncio.wait([stayer], timeout=0.001)
    leaver.cancel()
    assert doubled(await stayer) == [4.0]
    assert leaver.cancelled()


@in_virtual_time
async def test_a_hopeless_request_is_dropped_as_soon_as_it_could_have_run_and_others_go_on() -> None:
    replica = Replica()
    target = dispatcher(replica)
    await busy(target)
    began = now_ms()
    hopeless, fine = ask(target, 1.0, budget_ms=20.0), ask(target, 2.0)
    with pytest.raises(
        DeadlineHopeless, match=r"^its deadline was (in )?[0-9.]+ ms( ago)? when its turn came$"
    ):
        await hopeless
    assert now_ms() - began <= 20.0
    assert doubled(await fine) == [4.0]
    assert all(1.0 not in values for values in replica.batches)


@in_virtual_time
async def test_while_no_replica_answers_callers_are_told_by_their_deadlines_all_the_same() -> None:
    target = dispatcher(Replica(hangs=True))
    stuck = await busy(target)
    began = now_ms()
    budgets = (400.0, 50.0, 120.0, 50.0)
    ends: dict[int, float] = {}

    async def told(number: int, budget_ms: float) -> None:
        with pytest.raises(DeadlineHopeless):
            await target.run("v", batch(1.0), began + budget_ms)
        ends[number] = now_ms() - began

    await asyncio.gather(*(told(number, budget_ms) for number, budget_ms in enumerate(budgets)))
    for number, budget_ms in enumerate(budgets):
        assert budget_ms - 2 * run_ms(1) <= ends[number] <= budget_ms
    assert not any(task.done() for task in stuck)
    await target.close()
    await asyncio.gather(*stuck, return_exceptions=True)


@in_virtual_time
async def test_a_hopeless_request_on_a_route_that_never_refuses_is_run_all_the_same() -> None:
    replica = Replica()
    target = dispatcher(replica)
    await busy(target)
    late = ask(target, 1.0, budget_ms=15.0, droppable=False)
    assert doubled(await late) == [2.0]


@in_virtual_time
async def test_late_work_and_work_in_time_take_turns_in_batches_of_the_allowed_size() -> None:
    replica = Replica()
    target = dispatcher(replica)
    running = await busy(target)
    late = [ask(target, -1.0, budget_ms=1.0, droppable=False) for _ in range(40)]
    live = [ask(target, 1.0, budget_ms=60_000.0) for _ in range(40)]
    await asyncio.gather(*late, *live, *running)
    kinds = [sorted(set(values)) for values in replica.batches[BATCHES_IN_FLIGHT:]]
    assert max(map(len, replica.batches)) == 8
    assert kinds == [[-1.0], [1.0]] * 5


@in_virtual_time
async def test_a_failed_replica_is_tried_once_more_while_the_deadline_allows() -> None:
    replica = Replica(deque([ConnectionError("the actor died")]))
    assert doubled(await ask(dispatcher(replica), 1.0)) == [2.0]
    assert replica.batches == [[1.0], [1.0]]


@in_virtual_time
async def test_one_caller_whose_deadline_allows_a_second_try_is_enough() -> None:
    replica = Replica(hop_ms=40.0)
    target = dispatcher(replica)
    await busy(target)
    short, long = ask(target, 1.0, budget_ms=85.0), ask(target, 2.0, budget_ms=5_000.0)
    while len(replica.calls) < 3:
        await asyncio.wait([long], timeout=0.001)
    assert replica.batches[2] == [1.0, 2.0]
    replica.faults.append(ConnectionError("gone"))
    answers = await asyncio.gather(short, long, return_exceptions=True)
    assert [type(a) for a in answers] == [OnlineAnswer, OnlineAnswer]
    assert replica.batches[3] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (ConnectionError("the actor died"), "the actor died"),
        (
            ValueError("Traceback (most recent call last)\n  File x\nValueError: bad row"),
            "ValueError: bad row",
        ),
        (KeyError("v"), "'v'"),
        (RuntimeError(), "RuntimeError"),
        (TimeoutError(), "TimeoutError"),
        (MemoryError("no memory"), "no memory"),
        (asyncio.CancelledError(), "CancelledError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_second_failure_of_any_kind_is_told_to_every_caller_in_one_line(
    fault: BaseException, said: str
) -> None:
    @in_virtual_time
    async def play() -> None:
        replica = Replica()
        target = dispatcher(replica)
        await busy(target)
        replica.faults = deque([None, None, fault, fault])
        callers = [ask(target, 1.0), ask(target, 2.0), ask(target, *[3.0] * 10)]
        answers = await asyncio.gather(*callers, return_exceptions=True)
        failed = [a for a in answers if isinstance(a, ReplicaFailed)]
        assert failed
        for error in failed:
            assert str(error) == f"variant 'v' could not run the batch: {said}"
        # And the next request is served, on the slots that the failed batches have given back.
        assert doubled(await ask(target, 4.0)) == [8.0]

    play()


@in_virtual_time
async def test_a_failure_that_comes_too_late_for_a_second_try_is_not_tried_again() -> None:
    replica = Replica(deque([ConnectionError("gone")]), hop_ms=20.0)
    target = dispatcher(replica)
    with pytest.raises(ReplicaFailed, match="gone"):
        await ask(target, 1.0, budget_ms=15.0)
    assert len(replica.calls) == 1


@in_virtual_time
async def test_a_replica_that_hangs_is_given_up_on() -> None:
    replica = Replica(hangs=True)
    began = now_ms()
    with pytest.raises(ReplicaFailed, match="TimeoutError"):
        await ask(dispatcher(replica), 1.0, budget_ms=60_000.0)
    assert now_ms() - began == pytest.approx(2 * (5_000.0 + 20 * run_ms(1)))


@in_virtual_time
async def test_a_bad_request_fails_alone_and_is_not_tried_again() -> None:
    replica = Replica(bad={2.0, 4.0})
    target = dispatcher(replica)
    running = await busy(target)
    tasks = [ask(target, *values) for values in ([1.0], [2.0], [3.0, 5.0], [6.0, 4.0])]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*running)
    assert [type(a) for a in answers] == [OnlineAnswer, BadRows, OnlineAnswer, BadRows]
    assert [doubled(a) for a in answers if isinstance(a, OnlineAnswer)] == [[2.0], [6.0, 10.0]]
    assert str(answers[1]) == "ValueError: a bad value"
    assert replica.batches[BATCHES_IN_FLIGHT:] == [[1.0, 2.0, 3.0, 5.0, 6.0, 4.0]]


@in_virtual_time
async def test_a_batch_of_bad_requests_only_fails_them_all_and_the_slots_are_free_again() -> None:
    replica = Replica(bad={2.0})
    target = dispatcher(replica)
    for _ in range(2 * BATCHES_IN_FLIGHT):
        with pytest.raises(BadRows):
            await ask(target, 2.0)
    assert doubled(await ask(target, 1.0)) == [2.0]


@in_virtual_time
async def test_a_bad_part_of_a_large_request_says_where_it_begins() -> None:
    replica = Replica(bad={13.0})
    target = dispatcher(replica)
    with pytest.raises(BadRows, match=r"^in the part that begins with row 8: ValueError: a bad value$"):
        await ask(target, *(float(n) for n in range(20)))


@in_virtual_time
async def test_nothing_is_learnt_from_the_time_that_finding_bad_rows_took() -> None:
    replica = Replica(bad={2.0}, search_ms=3_000.0)
    target = dispatcher(replica)
    await ask(target, 1.0)
    before = target.load()
    for _ in range(20):
        with pytest.raises(BadRows):
            await ask(target, 2.0, budget_ms=1e6)
    after = target.load()
    assert (after.hop_ms, after.variants) == (before.hop_ms, before.variants)


def answering(reply: bytes) -> Callable[[str, bytes, str], Any]:
    async def send(name: str, message: bytes, replica: str) -> bytes:
        return reply

    return send


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"not a message",
        pack({"y": batch(1.0, 2.0, 3.0)["x"]}, {"run_ms": 1.0, "wait_ms": 0.0}),
        pack({"y": batch(1.0)["x"]}, {}),
        pack({"y": batch(1.0)["x"]}, {"run_ms": "soon", "wait_ms": 0.0}),
    ],
    ids=["empty", "garbage", "rows that nobody sent", "no times", "times that are none"],
)
def test_an_answer_that_cannot_be_used_fails_its_callers(reply: bytes) -> None:
    @in_virtual_time
    async def play() -> None:
        target = OnlineDispatcher(
            {"v": variant()}, answering(reply), replicas=1, max_batch=8, max_waiting=10, clock=now_ms
        )
        with pytest.raises(ReplicaFailed):
            await ask(target, 1.0)
        with pytest.raises(ReplicaFailed):
            await ask(target, 1.0)

    play()


@in_virtual_time
async def test_inputs_that_cannot_be_joined_fail_their_batch_only() -> None:
    replica = Replica()
    target = dispatcher(replica)
    running = await busy(target)
    odd = asyncio.create_task(target.run("v", {"z": batch(1.0)["x"]}, now_ms() + 500.0))
    even = ask(target, 2.0, budget_ms=600.0)
    with pytest.raises(ReplicaFailed):
        await odd
    with pytest.raises(ReplicaFailed):
        await even
    await asyncio.gather(*running)
    assert doubled(await ask(target, 3.0)) == [6.0]


@in_virtual_time
async def test_a_listener_that_fails_takes_no_answer_from_a_caller() -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)

    def listen(name: str, rows: int, ms: float) -> None:
        raise RuntimeError("the metrics are down")

    target = dispatcher(Replica(), on_batch=listen)
    assert doubled(await ask(target, 1.0)) == [2.0]
    assert doubled(await ask(target, 2.0)) == [4.0]


@in_virtual_time
async def test_every_batch_is_reported_with_its_rows_and_time() -> None:
    seen: list[tuple[str, int, float]] = []
    target = dispatcher(Replica(), on_batch=lambda *batch: seen.append(batch))
    await ask(target, 1.0, 2.0)
    await settled()
    assert [(name, rows) for name, rows, _ in seen] == [("v", 2)]
    assert seen[0][2] == pytest.approx(run_ms(2))


@in_virtual_time
async def test_the_heap_takes_no_more_than_it_is_allowed_and_all_of_a_request_or_nothing() -> None:
    target = dispatcher(Replica(), max_waiting=3)
    running = await busy(target)
    waiting = [ask(target, float(n)) for n in range(2)]
    await settled()
    with pytest.raises(HeapFull, match="2 requests wait, the policy's max_waiting is 3"):
        await ask(target, *[0.0] * 9)
    waiting.append(ask(target, 2.0))
    await settled()
    assert target.load().full
    with pytest.raises(HeapFull):
        await ask(target, 3.0)
    assert [doubled(a) for a in await asyncio.gather(*waiting)] == [[0.0], [2.0], [4.0]]
    await asyncio.gather(*running)
    assert not target.load().full


@in_virtual_time
async def test_closing_fails_what_waits_what_runs_and_what_has_not_begun_and_takes_no_more() -> None:
    replica = Replica()
    target = dispatcher(replica)
    tasks = [ask(target, float(n)) for n in range(30)]
    await asyncio.sleep(0)  # the first batches are made and have not taken their first step
    await target.close()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(a) for a in answers} == {ReplicaFailed}
    assert {str(a) for a in answers} == {"the router is shutting down"}
    with pytest.raises(ReplicaFailed, match="shutting down"):
        await ask(target, 1.0)
    assert replica.open_calls == 0


@in_virtual_time
async def test_closing_twice_or_without_work_does_no_harm() -> None:
    target = dispatcher(Replica())
    await ask(target, 1.0)
    await target.close()
    await target.close()
    assert target.load().busy_ms == 0.0


@in_virtual_time
async def test_the_load_tells_what_runs_what_waits_and_the_way_there() -> None:
    target = dispatcher(Replica())
    idle = target.load()
    assert (idle.busy_ms, idle.waiting_ms, idle.full, idle.replicas) == (0.0, 0.0, False, 1)
    assert idle.hop_ms > 0
    running = await busy(target)
    tasks = [ask(target, float(n)) for n in range(4)]
    await settled()
    load = target.load()
    # Two batches of eight, each sent half a hop before it starts.
    assert load.busy_ms == pytest.approx(run_ms(8) + 2 * run_ms(8), abs=2.0)
    assert load.waiting_ms == pytest.approx(run_ms(4))
    await asyncio.gather(*tasks, *running)
    await settled()
    assert (target.load().busy_ms, target.load().waiting_ms) == (0.0, 0.0)


@in_virtual_time
async def test_live_batches_correct_the_profile_and_the_calls_overhead() -> None:
    replica = Replica(hop_ms=6.0)
    target = OnlineDispatcher(
        {"v": variant(faster=4.0)}, replica.send, replicas=1, max_batch=8, max_waiting=10, clock=now_ms
    )
    before = prediction.alone_ms(target.load(), "v", 1)
    for _ in range(200):
        await ask(target, 1.0)
    after = prediction.alone_ms(target.load(), "v", 1)
    assert before < run_ms(1) / 4 + 6.0
    assert after == pytest.approx(run_ms(1) + 6.0, rel=0.15)


@in_virtual_time
async def test_promises_that_were_broken_widen_the_margin_and_those_kept_narrow_it() -> None:
    target = dispatcher(Replica())
    start = target.load().prediction_margin
    for _ in range(20):
        await target.run("v", batch(1.0), now_ms() + 1_000.0, predicted_ms=1_000.0)
    kept = target.load().prediction_margin
    assert kept < start
    for _ in range(3):
        await target.run("v", batch(1.0), now_ms() + 1_000.0, predicted_ms=0.001)
    assert target.load().prediction_margin > kept


@in_virtual_time
async def test_time_to_spare_is_kept_where_it_is_asked_for_and_grows_with_what_comes_too_late() -> None:
    for in_time, first in ((0.0, False), (0.999, True)):
        target = OnlineDispatcher(
            {"v": variant()},
            Replica().send,
            replicas=1,
            max_batch=8,
            max_waiting=10,
            in_time=in_time,
            clock=now_ms,
        )
        before_ms = target.load().headroom_ms
        assert (before_ms > 0.0) is first
        await target.run("v", batch(1.0), now_ms() + 1_000.0, predicted_ms=0.001)
        assert (target.load().headroom_ms > before_ms) is first


@in_virtual_time
async def test_a_request_that_was_dropped_broke_its_promise() -> None:
    target = dispatcher(Replica())
    running = await busy(target)
    before = target.load().prediction_margin
    hopeless = asyncio.create_task(target.run("v", batch(1.0), now_ms() + 20.0, predicted_ms=15.0))
    with pytest.raises(DeadlineHopeless):
        await hopeless
    assert target.load().prediction_margin > before
    await asyncio.gather(*running)


@in_virtual_time
async def test_a_variant_that_was_passed_over_is_strained_for_a_second() -> None:
    target = dispatcher(Replica(), "a", "b")
    target.note_degraded("a")
    assert list(target.load().recently_degraded) == ["a"]
    await asyncio.sleep(0.9)
    target.note_degraded("b")
    await asyncio.sleep(0.2)
    assert list(target.load().recently_degraded) == ["b"]
    await asyncio.sleep(1.0)
    assert not target.load().recently_degraded


@in_virtual_time
async def test_a_probe_is_due_when_nothing_has_run_for_long_and_not_while_anything_runs() -> None:
    target = dispatcher(Replica(), "a", "b")
    assert target.stale_variant() == "a"
    running = ask(target, 1.0, name="a")
    await settled()
    assert target.stale_variant() is None
    await running
    assert target.stale_variant() == "b"
    await ask(target, 1.0, name="b")
    assert target.stale_variant() is None
    await asyncio.sleep(6.0)
    assert target.stale_variant() == "a"


@in_virtual_time
async def test_a_doubtful_estimate_is_probed_sooner_and_soonest_while_somebody_asks() -> None:
    replica = Replica(hop_ms=60.0)
    target = dispatcher(replica)
    for _ in range(20):
        await ask(target, 1.0)
    assert target.stale_variant() is None
    takes_s = target.load().variants["v"].profile.bound_ms(1) / 1e3
    await asyncio.sleep(45.0 * takes_s)
    assert target.stale_variant() is None, "with nobody there, probes are to take a fiftieth of the time"
    target.load(now_ms() + 10.0, 1)  # somebody asks, and may be refused
    assert target.stale_variant() == "v"
    await asyncio.sleep(2.1)
    await ask(target, 1.0)
    await asyncio.sleep(55.0 * takes_s)
    assert target.stale_variant() == "v"


@in_virtual_time
async def test_a_storm_of_callers_who_come_and_leave_leaves_nothing_behind() -> None:
    replica = Replica(deque([None, OSError("a"), None, None, OSError("b"), OSError("c"), None]))
    target = dispatcher(replica, "v", "w", replicas=2)
    tasks = [
        ask(
            target,
            *[float(n)] * (1 + n % 11),
            budget_ms=5.0 + 7.0 * (n % 40),
            name="vw"[n % 2],
            droppable=n % 5 > 0,
        )
        for n in range(300)
    ]
    for at, task in enumerate(tasks):
        if at % 7 == 0:
            await asyncio.sleep(0.001)
            task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    kinds = {type(a) for a in answers}
    assert kinds <= {OnlineAnswer, DeadlineHopeless, ReplicaFailed, HeapFull, asyncio.CancelledError}
    assert {OnlineAnswer, DeadlineHopeless} <= kinds
    for n, answer in enumerate(answers):
        if isinstance(answer, OnlineAnswer):
            assert doubled(answer) == [2.0 * n] * (1 + n % 11)
    await settled()
    load = target.load()
    assert (load.busy_ms, load.waiting_ms, replica.open_calls) == (0.0, 0.0, 0)


def test_every_error_is_a_dispatch_error() -> None:
    for kind in (DeadlineHopeless, ReplicaFailed, HeapFull):
        assert issubclass(kind, DispatchError)


@in_virtual_time
async def test_a_batch_is_not_filled_beyond_what_its_leader_was_promised() -> None:
    replica = Replica()
    target = dispatcher(replica)
    running = await busy(target)
    # Free in 36 ms; its deadline would leave time for a full batch, its promise for six rows.
    call = target.run("v", batch(1.0), now_ms() + 900.0, predicted_ms=54.0)
    leader = asyncio.create_task(call)
    others = [ask(target, float(n), budget_ms=950.0) for n in range(2, 9)]
    await asyncio.gather(leader, *others, *running)
    assert replica.batches[2] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


@in_virtual_time
async def test_where_others_ask_with_short_budgets_relaxed_requests_run_in_smaller_batches() -> None:
    async def sizes(shortest_ms: float) -> list[int]:
        replica = Replica()
        target = dispatcher(replica)
        target.load(now_ms() + shortest_ms)
        tasks = [ask(target, float(n), budget_ms=60_000.0) for n in range(24)]
        await asyncio.gather(*tasks)
        return [len(values) for values in replica.batches]

    assert max(await sizes(20_000.0)) == 8
    assert max(await sizes(20.0)) < 8


@in_virtual_time
async def test_the_slots_follow_the_replicas_that_live() -> None:
    replica = Replica()
    target = dispatcher(replica, replicas=2, max_batch=1)
    target.set_replicas(["a"])
    tasks = [ask(target, float(n)) for n in range(7)]
    await settled()
    assert (replica.open_calls, target.load().replicas) == (BATCHES_IN_FLIGHT, 1)
    target.set_replicas(["a", "b", "c"])
    await settled()
    assert (replica.open_calls, target.load().replicas) == (3 * BATCHES_IN_FLIGHT, 3)
    target.set_replicas([])
    assert target.load().replicas == 1
    await asyncio.gather(*tasks)


@in_virtual_time
async def test_the_load_tells_how_much_was_asked_for_lately() -> None:
    target = dispatcher(Replica())
    for _ in range(400):
        await asyncio.sleep(0.01)
        target.load(now_ms() + 100.0, row_cost=3)
    assert target.load().demand_rows_per_s == pytest.approx(300.0, rel=0.05)
    await asyncio.sleep(3.0)
    assert target.load().demand_rows_per_s < 30.0
