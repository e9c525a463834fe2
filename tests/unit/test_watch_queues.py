"""Without any worker: the router itself ends what has expired and tells those who wait for it."""

from __future__ import annotations

import asyncio

from tests.support.served import serving
from tests.support.virtual_time import in_virtual_time, now_ms
from workers.job import JobState, NewJob


@in_virtual_time
async def test_an_expired_jobs_waiters_are_told_within_a_second_though_no_worker_runs() -> None:
    async with serving() as served:
        watching = asyncio.create_task(served.service.queued.watch())
        await served.queue.submit([NewJob("m.1", b"", 1, 700)])
        (ended,) = await served.queue.wait(["m.1"], 30)
        assert ended.state is JobState.EXPIRED
        assert 700 <= now_ms() - 1_000_000 <= 1_700
        watching.cancel()
