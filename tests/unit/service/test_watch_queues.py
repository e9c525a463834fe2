"""Without any worker: the router itself ends what has expired and tells those who wait for it."""

from __future__ import annotations

import asyncio

from router.service.queued import QueuedRequests
from tests.support.served import serving
from tests.support.virtual_time import in_virtual_time, now_ms
from workers.queue.job import JobState, NewJob
from workers.queue.memory.queue import MemoryQueue


@in_virtual_time
async def test_an_expired_jobs_waiters_are_told_within_a_second_though_no_worker_runs() -> None:
    async with serving() as served:
        watching = asyncio.create_task(served.service.queued.watch())
        await served.queue.submit([NewJob("m.1", b"", 1, 700)])
        (ended,) = await served.queue.wait(["m.1"], 30)
        assert ended.state is JobState.EXPIRED
        assert 700 <= now_ms() - 1_000_000 <= 1_700
        watching.cancel()


@in_virtual_time
async def test_the_statistics_stay_fresh_while_the_reaper_or_another_models_queue_hangs() -> None:
    async with serving() as served:
        never = asyncio.Event().wait
        known, stuck = served.service.models["m"], served.service.models["o"]
        stuck.queue = MemoryQueue("o")
        stuck.queue.stats = stuck.queue.reap = served.queue.reap = never  # type: ignore[method-assign,assignment]
        # The one that hangs comes first.
        queued = QueuedRequests(
            {"o": stuck, "m": known}, served.recorder, lambda: served.service.policy, now_ms
        )
        watching = asyncio.create_task(queued.watch())
        for _ in range(10):
            await asyncio.sleep(0.5)
            assert known.known_stats(now_ms()) is not None
            assert stuck.known_stats(now_ms()) is None
        watching.cancel()
