"""Settings that only the router uses are taken over while requests wait and run."""

from __future__ import annotations

import asyncio

import pytest

from router.policy import parse
from router.scheduling.rescue import Promotion, Quota
from tests.support.replica import Replica
from tests.support.served import POLICY, serving
from tests.support.virtual_time import in_virtual_time, settled
from tests.unit.ingress.harness import LONG, post
from tests.unit.online.test_dispatcher import ask, busy, dispatcher, doubled


@pytest.mark.parametrize(("max_batch", "sizes"), [(4, [4, 4, 4]), (16, [12])])
def test_what_waits_is_run_in_batches_of_the_new_size(max_batch: int, sizes: list[int]) -> None:
    @in_virtual_time
    async def play() -> None:
        replica = Replica()
        target = dispatcher(replica)
        before = await busy(target)
        waiting = [ask(target, float(n), budget_ms=10_000.0) for n in range(12)]
        await settled()
        target.configure(max_batch, 100, 0.0)
        answers = await asyncio.gather(*waiting)
        await asyncio.gather(*before)
        assert [doubled(answer) for answer in answers] == [[2.0 * n] for n in range(12)]
        assert [len(one) for one in replica.batches[len(before) :]] == sizes
        assert target.load().max_batch == max_batch

    play()


@in_virtual_time
async def test_a_request_that_waits_with_more_rows_than_batches_now_have_runs_alone_and_whole() -> None:
    replica = Replica()
    target = dispatcher(replica)
    before = await busy(target)
    large, small = ask(target, *map(float, range(8)), budget_ms=5_000.0), ask(target, 9.0, budget_ms=6_000.0)
    split = ask(target, *map(float, range(10)), budget_ms=7_000.0)
    await settled()
    target.configure(3, 100, 0.0)
    after = ask(target, *map(float, range(7)), budget_ms=8_000.0)
    answers = await asyncio.gather(large, small, split, after)
    await asyncio.gather(*before)
    assert [len(answer.outputs["y"]) for answer in answers] == [8, 1, 10, 7]
    assert replica.batches[len(before)] == [float(n) for n in range(8)]
    assert max(len(one) for one in replica.batches[-3:]) <= 3


@in_virtual_time
async def test_a_part_that_fails_is_named_by_where_it_began_though_batches_have_another_size_by_then() -> (
    None
):
    target = dispatcher(Replica(bad={9.0}, search_ms=1.0))
    asked = ask(target, *map(float, range(10)), budget_ms=60_000.0)
    await settled()
    target.configure(2, 100, 0.0)
    with pytest.raises(Exception, match="begins with row 8:"):
        await asked


@in_virtual_time
async def test_a_running_service_takes_over_what_only_routers_use() -> None:
    async with serving() as served:
        model = served.service.model("m")
        assert model.online is not None
        text = POLICY.replace("max_batch: 8, max_waiting: 4", "max_batch: 2, max_waiting: 1, in_time: 99.9%")
        served.service.apply_policy(parse(text.replace("max_attempts: 1", "max_attempts: 2")))
        load = model.online.load()
        assert load.max_batch == 2
        assert load.headroom_ms > 0.0
        replies = await asyncio.gather(*(post(served, float(n)) for n in range(12)))
        assert {reply.status_code for reply in replies} == {200, 429}, "one may wait"
        task = post(served, 2.0, budget_ms=LONG)
        await settled()
        await served.work("RuntimeError: no memory", retry=True)
        (waiting,) = await served.queue.dead_letters() or [None]
        assert waiting is None, "it has a second attempt"
        task.cancel()


def test_the_share_of_rescues_changes_and_none_is_none() -> None:
    quota = Quota(0.5, 2, 8)
    quota.room(0.0)
    quota.spend(Promotion("a", "v", 3, 100.0))
    quota.configure(0.0, 2, 8)
    assert quota.room(1_000.0).run_ms == 0.0
    quota.configure(0.1, 2, 8)
    room = quota.room(2_000.0)
    assert (room.run_ms, room.rows_in_flight) == (pytest.approx(0.1 * 2 * 1_000.0), 3)
