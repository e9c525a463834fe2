"""Rescue at work, in virtual time: the in-memory queue, the real dispatcher, a replica in memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from optimizers.tensors import TensorSpec, pack, unpack
from router.online.dispatcher import OnlineDispatcher
from router.policy import BatchSection, OnlineSection
from router.policy.sections import RescueSection
from router.service.metrics import Recorder
from router.service.rescuer import Rescuer
from tests.support.replica import Replica, batch, variant
from tests.support.virtual_time import in_virtual_time, now_ms
from workers.queue.contract import Done
from workers.queue.job import JobState, JobStatus, Lease, NewJob
from workers.queue.memory.queue import MemoryQueue

EPOCH_MS = 1_800_000_000_000


def queue_clock() -> int:
    return EPOCH_MS + int(now_ms())


@dataclass
class Side:
    queue: MemoryQueue
    replica: Replica
    dispatcher: OnlineDispatcher
    recorder: Recorder
    task: asyncio.Task[None]
    sent: asyncio.Event
    rescuer: Rescuer

    async def submit(self, id: str, budget_ms: int, *values: float) -> None:
        await self.queue.submit([NewJob(id, pack(batch(*values)), len(values), budget_ms)])

    async def end_of(self, id: str) -> JobStatus:
        (status,) = await self.queue.wait([id], 60)
        return status


@asynccontextmanager
async def rescuing(
    replica: Replica | None = None, waits: bool = True, queue: MemoryQueue | None = None
) -> AsyncIterator[Side]:
    replica, recorder, sent = replica or Replica(), Recorder(), asyncio.Event()
    queue = queue or MemoryQueue("m", now_ms=queue_clock)

    async def send(name: str, message: bytes, where: str) -> bytes:
        sent.set()
        return await replica.send(name, message)

    dispatcher = OnlineDispatcher(
        {"v": variant("v")}, send, replicas=1, max_batch=8, max_waiting=100, clock=now_ms
    )
    rescuer = Rescuer(
        queue,
        dispatcher,
        (TensorSpec("x", "FP32", (-1, 1)),),
        variant("v"),
        OnlineSection(variants=("v",), max_batch=8),
        BatchSection(variant="v", max_batch=8),
        recorder,
        waits=lambda: waits,
        clock=now_ms,
    )
    task = asyncio.create_task(rescuer.run())
    try:
        yield Side(queue, replica, dispatcher, recorder, task, sent, rescuer)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await dispatcher.close()
        await queue.close()


@in_virtual_time
async def test_a_job_that_no_worker_takes_is_answered_online_in_time() -> None:
    async with rescuing() as side:
        await side.submit("a", 2_000, 1.0, 2.0)
        status = await side.end_of("a")
        assert (status.state, status.met, status.variant) == (JobState.DONE, True, "v")
        assert status.result is not None
        assert unpack(status.result)[0]["y"].ravel().tolist() == [2.0, 4.0]
        assert (status.worker or "").endswith(":rescue")
        assert 1_000 < (status.queued_ms or 0) < 2_000  # it was left to the workers for as long as could be
        assert side.recorder.rescues == {("m", "met"): 1}


@in_virtual_time
async def test_a_job_that_a_worker_holds_is_left_to_it() -> None:
    async with rescuing() as side:
        await side.submit("a", 2_000, 1.0)
        (lease,) = await side.queue.claim(1, 60_000, "worker")
        await asyncio.sleep(1.9)
        assert side.replica.batches == []
        assert await side.queue.settle([Done("a", lease.token, b"r")]) == [True]


@in_virtual_time
async def test_where_nothing_waits_the_queue_is_not_asked() -> None:
    async with rescuing(waits=False) as side:
        await side.submit("a", 2_000, 1.0)
        await asyncio.sleep(1.99)
        assert side.replica.batches == []


@in_virtual_time
async def test_a_job_that_fails_online_goes_back_once_and_a_worker_still_gets_it() -> None:
    faults: deque[BaseException | None] = deque([RuntimeError("poison")] * 9)
    async with rescuing(Replica(faults)) as side:
        await side.submit("a", 2_000, 1.0)
        await asyncio.sleep(1.95)
        calls = len(side.replica.calls)
        assert calls in (1, 2)  # the dispatcher's own second try included
        assert side.recorder.rescues == {("m", "returned"): 1}
        (lease,) = await side.queue.claim(1, 60_000, "worker")
        assert (lease.id, lease.attempts, lease.lost) == ("a", 0, 0)


@in_virtual_time
async def test_what_is_in_flight_when_the_router_leaves_is_given_back() -> None:
    async with rescuing(Replica(hangs=True)) as side:
        await side.submit("a", 2_000, 1.0)
        await side.sent.wait()
        assert await side.queue.claim(1, 60_000, "worker") == []
        side.task.cancel()
        await asyncio.gather(side.task, return_exceptions=True)
        assert [lease.id for lease in await side.queue.claim(1, 60_000, "worker")] == ["a"]


@in_virtual_time
async def test_what_is_leased_while_the_router_leaves_is_given_back_too() -> None:
    class SlowQueue(MemoryQueue):
        promoting = asyncio.Event()

        async def promote(self, ids: Sequence[str], lease_ms: int, worker: str) -> list[Lease]:
            leases = await super().promote(ids, lease_ms, worker)
            self.promoting.set()
            await asyncio.sleep(0.05)  # the answer is still on its way
            return leases

    async with rescuing(queue=SlowQueue("m", now_ms=queue_clock)) as side:
        await side.submit("a", 2_000, 1.0)
        await SlowQueue.promoting.wait()
        side.task.cancel()
        await asyncio.gather(side.task, return_exceptions=True)
        assert [lease.id for lease in await side.queue.claim(1, 60_000, "worker")] == ["a"]


@in_virtual_time
async def test_a_job_that_was_cancelled_meanwhile_stays_cancelled() -> None:
    async with rescuing() as side:
        await side.submit("a", 2_000, 1.0)
        await side.sent.wait()
        assert await side.queue.cancel("a") is JobState.CANCELLED
        await asyncio.sleep(0.1)
        status = await side.queue.state("a")
        assert status is not None
        assert (status.state, status.result) == (JobState.CANCELLED, None)


@in_virtual_time
async def test_inputs_that_do_not_fit_fail_alone() -> None:
    async with rescuing() as side:
        await side.queue.submit([NewJob("bad", b"not a message", 1, 2_000)])
        await side.queue.submit([NewJob("more", pack(batch(1.0, 2.0)), 1, 2_000)])
        await side.submit("good", 2_000, 3.0)
        bad, good = await side.end_of("bad"), await side.end_of("good")
        assert (bad.state, good.state) == (JobState.FAILED, JobState.DONE)
        assert "not a tensor message" in (bad.error or "")
        assert "2 rows where the job says 1" in ((await side.end_of("more")).error or "")


@in_virtual_time
async def test_interactive_requests_come_first() -> None:
    async with rescuing() as side:
        await side.submit("a", 600, 7.0)
        begun_ms = now_ms()
        crowd = [side.dispatcher.run("v", batch(1.0), now_ms() + 60_000, droppable=False) for _ in range(90)]
        await asyncio.gather(*crowd)
        # Without them it would have been taken at the first look, when 500 ms were left.
        assert now_ms() - begun_ms > 200
        assert [value for values in side.replica.batches for value in values] == [1.0] * 90
        status = await side.end_of("a")
        assert status.met


@in_virtual_time
async def test_a_rescuer_without_a_share_leaves_all_to_the_queue_until_it_has_one() -> None:
    async with rescuing() as side:
        batch_side = BatchSection(variant="v", max_batch=8)
        side.rescuer.configure(OnlineSection(variants=("v",), rescue=RescueSection(share=0.0)), batch_side)
        await side.submit("a", 2_000, 1.0)
        await side.submit("b", 9_000, 1.0)
        await asyncio.sleep(2.5)
        assert side.replica.batches == []
        side.rescuer.configure(OnlineSection(variants=("v",), rescue=RescueSection(share=0.2)), batch_side)
        assert (await side.end_of("b")).met
