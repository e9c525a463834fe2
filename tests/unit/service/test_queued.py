"""The service and a queue that is unknown, out of reach or slow: nobody waits for it who can be answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.served import POLICY, Served, serving
from tests.support.virtual_time import in_virtual_time, now_ms, settled
from tests.unit.ingress.harness import down, post, the_problem
from workers.queue.contract import Submitted
from workers.queue.job import NewJob
from workers.queue.settings import QueueSettings

AUTO = POLICY.replace('  - {name: bulk, when: {budget: "> 30s"}, to: batch}\n', "").replace(
    "{name: flexible, to: online, on_miss: [degrade]}", "{name: either, to: auto}"
)
#: The `auto` route's; by the other policy it goes to the queue.
LONG = 60_000
TENANTS = "tenants: {acme: {}}\n"


@asynccontextmanager
async def watched(policy: str = AUTO, settings: QueueSettings | None = None) -> AsyncIterator[Served]:
    """A router that knows its queue, and keeps watching it; nothing in it takes more than a minute."""
    async with serving(policy=policy, settings=settings) as served, asyncio.timeout(59.0):
        watching = asyncio.create_task(served.service.queued.watch())
        await settled()
        yield served
        watching.cancel()


async def never(*args: Any, **kwargs: Any) -> Any:
    """A server that is stopped: no answer, no error."""
    await asyncio.Event().wait()


def slow_to_answer(served: Served) -> None:
    """Submits are applied, and their answers are lost."""
    submit = served.queue.submit

    async def applied(jobs: Sequence[NewJob], *, within_ms: int | None = None) -> list[Submitted]:
        await submit(jobs, within_ms=within_ms)
        await asyncio.Event().wait()
        raise AssertionError

    served.queue.submit = applied  # type: ignore[method-assign]


@in_virtual_time
async def test_auto_takes_the_queue_while_it_is_known() -> None:
    async with watched() as served:
        answer = await served.infer(2.0, budget_ms=LONG, headers={"prefer": "respond-async"})
        assert (answer.status_code, answer.json()["route"]) == (202, "either")


@in_virtual_time
async def test_auto_goes_online_at_once_while_nothing_is_known_of_the_queue() -> None:
    async with serving(policy=AUTO) as served, asyncio.timeout(59.0):
        served.queue.submit = never  # type: ignore[method-assign]
        began = now_ms()
        answer = await served.infer(2.0, budget_ms=LONG)
        assert (answer.status_code, answer.headers["path"], answer.headers["route"]) == (
            200,
            "online",
            "either",
        )
        assert now_ms() - began < 100.0


@in_virtual_time
async def test_statistics_older_than_a_second_count_as_unknown() -> None:
    async with watched() as served:
        served.queue.stats = never  # type: ignore[method-assign]
        await asyncio.sleep(0.9)
        known = served.service.models["m"].known_stats
        assert known(now_ms()) is not None
        await asyncio.sleep(0.7)
        assert known(now_ms()) is None
        assert served.recorder.queues_known == {"m": False}
        assert (await served.infer(2.0, budget_ms=LONG)).headers["path"] == "online"
        shown = (await served.client.get("/v2/models/m/stats")).json()
        assert "queue" not in shown and shown["queue_known"] is False


@pytest.mark.parametrize("fault", [down, never])
def test_a_submit_that_fails_goes_online_with_what_is_left_of_the_budget(fault: Any) -> None:
    @in_virtual_time
    async def play() -> None:
        async with watched() as served:
            served.queue.submit = fault  # type: ignore[method-assign]
            began = now_ms()
            answer = await served.infer(2.0, budget_ms=LONG)
            assert answer.status_code == 200
            assert answer.headers["path"] == "online"
            took_ms = now_ms() - began
            assert took_ms < 1_500.0
            # What was predicted counts from the arrival.
            assert took_ms <= float(answer.headers["predicted-ms"]) < took_ms + 1_000.0
            assert served.recorder.fallbacks == {("m", "either"): 1}
            assert sum(served.recorder.requests.values()) == 1, "one request is counted once"

    play()


@in_virtual_time
async def test_a_server_that_refuses_a_submit_is_asked_by_nobody_else_until_it_is_seen_again() -> None:
    async with watched() as served:
        tried: list[float] = []

        async def refusing(*args: Any, **kwargs: Any) -> Any:
            tried.append(now_ms())
            await down()

        served.queue.submit = served.queue.stats = refusing  # type: ignore[method-assign]
        for _ in range(3):
            assert (await served.infer(2.0, budget_ms=LONG)).headers["path"] == "online"
        assert len(tried) == 1


@in_virtual_time
async def test_where_neither_side_can_take_it_both_say_why_and_it_counts_once() -> None:
    async with watched(AUTO + TENANTS) as served:
        served.queue.submit = down  # type: ignore[method-assign]
        blocked = [post(served, 1.0, budget_ms=400, path="m") for _ in range(40)]
        await settled()
        failed = await served.infer(2.0, budget_ms=LONG, headers={"tenant": "acme"})
        detail = the_problem(failed, 503)
        assert "connection refused" in detail and "the online heap is full" in detail
        assert served.recorder.requests["m", "either", "batch", "", "failed"] == 1
        assert served.recorder.tenants == {("acme", "failed"): 1}
        await asyncio.gather(*blocked)


@in_virtual_time
async def test_an_explicit_batch_route_still_tries_a_queue_of_which_nothing_is_known() -> None:
    async with serving() as served:
        accepted = await served.infer(2.0, budget_ms=LONG, headers={"prefer": "respond-async"})
        assert (accepted.status_code, accepted.json()["route"]) == (202, "bulk")
        assert "predicted-ms" not in accepted.headers
        assert (await served.queue.stats()).jobs == 1


@in_virtual_time
async def test_a_job_whose_submit_got_no_answer_is_cancelled_once_the_queue_answers() -> None:
    async with watched() as served:
        slow_to_answer(served)
        answer = await served.infer(2.0, budget_ms=LONG)
        assert answer.headers["path"] == "online"
        await asyncio.sleep(0.6)
        stats = await served.queue.stats()
        assert (stats.totals["submitted"], stats.totals["cancelled"]) == (1, 1)


@in_virtual_time
async def test_a_job_with_a_key_stays_for_its_retry_though_its_submit_got_no_answer() -> None:
    async with watched() as served:
        submit = served.queue.submit
        slow_to_answer(served)
        about = {"idempotency-key": "k"}
        first = await served.infer(2.0, budget_ms=LONG, headers=about)
        assert first.headers["path"] == "online"
        served.queue.submit = submit  # type: ignore[method-assign]
        await asyncio.sleep(0.6)
        retry = post(served, 2.0, budget_ms=LONG, headers=about)
        await settled()
        assert await served.work() == 1
        assert (await retry).json()["outputs"] == first.json()["outputs"]
        assert (await served.queue.stats()).totals["submitted"] == 1


@in_virtual_time
async def test_a_caller_who_leaves_during_the_submit_leaves_no_job_behind() -> None:
    async with watched() as served:
        slow_to_answer(served)
        task = post(served, 2.0, budget_ms=LONG)
        await settled()
        task.cancel()
        await asyncio.sleep(0.6)
        assert (await served.queue.stats()).jobs == 0
        assert served.recorder.requests == {("m", "either", "batch", "", "left"): 1}


@in_virtual_time
async def test_what_the_queue_takes_at_least_is_learnt_from_answers_that_were_waited_for() -> None:
    async with watched() as served:
        for wait_s in (0.030, 0.025, 0.040):
            task = post(served, 2.0, budget_ms=LONG)
            await asyncio.sleep(wait_s)
            await served.work()
            assert (await task).headers["path"] == "batch"
        accepted = await served.infer(2.0, budget_ms=LONG, headers={"prefer": "respond-async"})
        assert float(accepted.headers["predicted-ms"]) >= 25.0


@in_virtual_time
async def test_both_paths_count_every_end_for_the_route_and_for_the_tenant() -> None:
    async with watched(POLICY + TENANTS, QueueSettings(max_jobs=1)) as served:
        acme = {"tenant": "acme", "prefer": "respond-async", "idempotency-key": "k"}
        assert (await served.infer(2.0, budget_ms=LONG, headers=acme)).status_code == 202
        assert (await served.infer(5.0, budget_ms=LONG, headers=acme)).status_code == 409
        other = {**acme, "idempotency-key": "l"}
        assert (await served.infer(2.0, budget_ms=LONG, headers=other)).status_code == 429
        served.queue.submit = down  # type: ignore[method-assign]
        assert (await served.infer(2.0, budget_ms=LONG, headers=other)).status_code == 503
        assert (await served.infer(2.0, headers={"tenant": "acme"})).status_code == 200
        ends = {"accepted": 1, "conflict": 1, "refused": 1, "failed": 1, "done": 1}
        assert served.recorder.tenants == {("acme", outcome): count for outcome, count in ends.items()}
        by_route = {outcome: count for (*_, outcome), count in served.recorder.requests.items()}
        assert by_route == ends
