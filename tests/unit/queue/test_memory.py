"""What the in-memory queue owes the simulator beyond the contract: what is gone leaves nothing behind."""

from __future__ import annotations

import asyncio

from tests.queue_harness import START_MS, job, memory
from workers.queue.contract import Done, Failed, Release
from workers.queue.memory.queue import MemoryQueue
from workers.queue.retry import RetryPolicy
from workers.queue.settings import QueueSettings


async def test_what_was_settled_or_cancelled_leaves_no_entry_behind() -> None:
    h = await memory(QueueSettings(keep_ms=1000, keep_dead_ms=1000))
    await h.queue.submit([job("last", 10_000_000)])
    for i in range(3000):
        await h.queue.submit([job(f"a{i}", 60_000), job(f"b{i}", 70_000)])
        (lease,) = await h.queue.claim(1, 600_000, "w")
        await h.queue.extend([lease.ref], 700_000)
        await h.queue.settle([Done(lease.id, lease.token, b"")])
        await h.queue.cancel(f"b{i}")
        await h.advance(1)
    places = h.queue._places  # type: ignore[attr-defined]
    (line,) = places.waiting._queues.values()
    assert [w.id for w in await h.queue.peek(5)] == ["last"]
    assert len(line.heap) < 100
    assert len(places._times) < 200
    assert len(h.queue._records) <= 2002  # type: ignore[attr-defined]


async def test_a_job_that_leaves_its_line_and_comes_back_is_claimed_once() -> None:
    h = await memory(QueueSettings(retry=RetryPolicy(base_ms=10, cap_ms=10)))
    await h.queue.submit([job("a", 9000), job("b", 8000), job("c", 7000)])
    for round in range(5):
        (lease,) = await h.queue.promote(["a"], 1000, "r")
        back = Failed("a", lease.token, "x") if round == 0 else Release("a", lease.token)
        await h.queue.settle([back])
        await h.advance(10)
        await h.queue.reap()
    assert [w.id for w in await h.queue.peek(9)] == ["c", "b", "a"]
    assert [lease.id for lease in await h.queue.claim(9, 1000, "w")] == ["c", "b", "a"]
    assert (await h.queue.stats()).waiting_rows == 0


async def test_full_tells_when_there_is_room_by_the_recent_rate() -> None:
    h = await memory(QueueSettings(max_jobs=30))
    await h.queue.submit([job(f"j{i}") for i in range(30)])
    for _ in range(20):
        await h.advance(100)
        (lease,) = await h.queue.claim(1, 1000, "w")
        await h.queue.settle([Done(lease.id, lease.token, b"")])
        await h.queue.submit([job(f"next of {lease.id}".replace(" ", "-"))])
    (full,) = await h.queue.submit([job("one-too-many")])
    assert 90 <= full.retry_after_ms <= 130  # type: ignore[union-attr]


async def test_an_idle_worker_that_was_beaten_to_its_work_sleeps_on() -> None:
    looks = 0

    def now_ms() -> int:
        nonlocal looks
        looks += 1
        return START_MS

    queue = MemoryQueue("m", now_ms=now_ms)
    idle = asyncio.create_task(queue.wait_for_work(0.05))
    await asyncio.sleep(0)
    await queue.submit([job("a")])
    assert [lease.id for lease in await queue.claim(1, 60_000, "other")] == ["a"]
    assert await idle is False
    assert looks < 8
