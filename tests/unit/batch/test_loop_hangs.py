"""The loop loop on a model that never returns, and on a queue that fails: it ends, or backs off."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import threading
from itertools import pairwise

import pytest

from optimizers.profile import LatencyProfile, fit
from optimizers.tensors import Tensors, rows_of
from tests.unit.batch.test_loop import Doubler, drained, result, row
from workers.batch.loop import WorkerLoop
from workers.batch.settings import LoopSettings
from workers.execution.model_thread import ModelHangs, ModelThread
from workers.execution.work_limits import WorkLimit
from workers.queue.contract import DeadlineQueue, QueueError, QueueUnavailable
from workers.queue.job import JobDecodeError, JobState, Lease
from workers.queue.memory.queue import MemoryQueue
from workers.queue.settings import QueueSettings

#: Blocked for 200 ms is too long.
SOON = WorkLimit(on_cpu_ms=1e9, blocked_ms=200.0)
QUICK = LoopSettings(lease_ms=60_000, watch_s=0.01, limit=lambda predicted_ms: SOON, load_limit=SOON)


class Hanging(Doubler):
    """Hangs on values of 100 and above, and on loading the variant ``stuck``."""

    def __init__(self, release: threading.Event) -> None:
        super().__init__()
        self.release = release

    def load(self, variant: str) -> LatencyProfile:
        if variant == "stuck":
            self.release.wait(60)
        return fit({1: [0.01], 8: [0.02]})

    def run(self, variant: str, batch: Tensors) -> Tensors:
        if max(batch["x"].ravel().tolist()) >= 100:
            self.release.wait(60)
        return super().run(variant, batch)

    def check(self, variant: str, batch: Tensors) -> int:
        return rows_of(batch)


async def hangs(queue: DeadlineQueue, variant: str = "main") -> str:
    """One worker, until it gives up; why."""
    release = threading.Event()
    loop = WorkerLoop(queue, Hanging(release), variant, "w", QUICK, sched_idle=False)
    try:
        with pytest.raises(ModelHangs) as error:
            await asyncio.wait_for(loop.run(), 20)
        assert loop.hung_reason == str(error.value)
        return str(error.value)
    finally:
        release.set()


async def claim_all(queue: MemoryQueue) -> list[Lease]:
    """What is claimed until nothing is left: jobs that a worker gave up on come one at a time."""
    leases: list[Lease] = []
    while some := await queue.claim(100, 1000, "other"):
        leases += some
    return leases


async def test_jobs_of_a_batch_that_hung_share_no_batch_again_however_many_are_claimed() -> None:
    queue = MemoryQueue("m", rng=random.Random(1))
    await queue.submit([row("a", 100, budget_ms=90_000), *(row(f"b{i}", i) for i in range(5))])
    await hangs(queue)
    reason = await hangs(queue)
    assert reason.startswith("variant 'main' with 1 rows hangs: ")
    stats = await queue.stats()
    assert stats.totals["lost"] == 6 + 1, "the others of the first batch were not taken along again"


class ClaimsRecorded(MemoryQueue):
    """Keeps the ids of each claim that was not empty."""

    def __init__(self) -> None:
        super().__init__("m", rng=random.Random(1))
        self.claims: list[list[str]] = []

    async def claim(self, n: int, lease_ms: int, worker: str, *, max_rows: int | None = None) -> list[Lease]:
        leases = await super().claim(n, lease_ms, worker, max_rows=max_rows)
        if leases:
            self.claims.append([x.id for x in leases])
        return leases


async def test_no_job_is_claimed_behind_one_that_hung_a_worker_before() -> None:
    queue = ClaimsRecorded()
    await queue.submit([row("a", 100)])
    await hangs(queue)
    await queue.submit([row("b", 1, budget_ms=90_000)])
    await hangs(queue)
    assert queue.claims == [["a"], ["a"]]


async def test_a_batch_that_hangs_ends_the_worker_and_its_jobs_lose_their_lease() -> None:
    queue = MemoryQueue("m", rng=random.Random(1))
    await queue.submit([row("a", 100), row("b", 2)])
    assert (await hangs(queue)).startswith("variant 'main' with 2 rows hangs: ")
    stats = await queue.stats()
    assert (stats.waiting_jobs, stats.leased_jobs, stats.totals["lost"]) == (2, 0, 2)


async def test_a_job_that_hangs_every_time_is_a_dead_letter_that_says_so_and_others_are_done() -> None:
    queue = MemoryQueue("m", QueueSettings(max_lost_leases=3, suspect_after=1), rng=random.Random(1))
    await queue.submit([row("a", 100), *(row(f"b{i}", i) for i in range(20))])
    for _ in range(3):
        await hangs(queue)
    status = await queue.state("a")
    assert status is not None and status.state is JobState.DEAD
    assert (status.error or "").startswith("lost its lease 3 times; last: variant 'main' with 1 rows hangs: ")
    loop = WorkerLoop(queue, Doubler(), "main", "w", sched_idle=False)
    running = asyncio.create_task(loop.run())
    ended = await drained(queue, [f"b{i}" for i in range(20)])
    await loop.stop()
    await asyncio.wait_for(running, 10)
    assert {i: result(ended[f"b{i}"]) for i in range(20)} == {i: [2 * i] for i in range(20)}


async def test_what_was_claimed_and_not_begun_is_given_back_as_it_was() -> None:
    queue = MemoryQueue("m", rng=random.Random(1))
    await queue.submit([row(f"j{i}", 100 if i < 8 else i, budget_ms=60_000 + i) for i in range(12)])
    await hangs(queue)
    leases = await claim_all(queue)
    assert {x.id: x.lost for x in leases} == {f"j{i}": int(i < 8) for i in range(12)}


async def test_loading_that_hangs_ends_the_worker_too() -> None:
    queue = MemoryQueue("m", rng=random.Random(1))
    await queue.submit([row("a", 1)])
    assert (await hangs(queue, "stuck")).startswith("loading variant 'stuck' hangs: ")
    assert (await queue.claim(1, 1000, "other"))[0].lost == 0


async def test_a_job_whose_variant_hangs_in_loading_loses_its_lease_and_no_other_does() -> None:
    queue = MemoryQueue("m", rng=random.Random(1))
    await queue.submit([row("a", 1, variant="stuck"), row("b", 2, budget_ms=90_000)])
    await hangs(queue)
    leases = await claim_all(queue)
    assert {x.id: x.lost for x in leases} == {"a": 1, "b": 0}


async def test_a_thread_that_hangs_keeps_nobody_waiting() -> None:
    release, begun = threading.Event(), threading.Event()
    thread = ModelThread("m", sched_idle=False)

    def hang() -> None:
        begun.set()
        release.wait(60)

    call = asyncio.create_task(thread.call(hang))
    assert await asyncio.to_thread(begun.wait, 60)
    (own,) = [t for t in threading.enumerate() if t.name == "m"]
    assert own.daemon  # or the process could not end
    thread.close()
    with pytest.raises(RuntimeError, match="closed"):
        await thread.call(hang)
    release.set()
    await asyncio.wait_for(call, 60)
    await asyncio.to_thread(own.join, 60)
    assert not own.is_alive()


class Failing(MemoryQueue):
    """Its first claims fail; there always seems to be work."""

    def __init__(self, errors: list[Exception]) -> None:
        super().__init__("m")
        self.errors = errors
        self.claimed_at: list[float] = []

    async def claim(self, n: int, lease_ms: int, worker: str, *, max_rows: int | None = None) -> list[Lease]:
        self.claimed_at.append(asyncio.get_running_loop().time())
        if self.errors:
            raise self.errors.pop(0)
        return await super().claim(n, lease_ms, worker, max_rows=max_rows)

    async def wait_for_work(self, timeout_s: float) -> bool:
        await asyncio.sleep(0)
        return bool(self.errors) or await super().wait_for_work(timeout_s)


async def test_a_claim_that_fails_is_tried_again_after_a_pause_that_grows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors = [QueueUnavailable("refused"), JobDecodeError("cannot be read"), QueueError("something else")]
    queue = Failing(list(errors))
    await queue.submit([row("a", 1)])
    loop = WorkerLoop(queue, Doubler(), "main", "w", sched_idle=False)
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        running = asyncio.create_task(loop.run())
        assert result((await drained(queue, ["a"]))["a"]) == [2]
        await loop.stop()
        await asyncio.wait_for(running, 10)
    pauses = [b - a for a, b in pairwise(queue.claimed_at[:4])]
    assert all(pause > 0.9 * least for pause, least in zip(pauses, (0.1, 0.2, 0.4), strict=True)), pauses
    assert "cannot claim (1 times): QueueUnavailable: refused" in caplog.text
    assert re.search(r"cannot claim \(2 times\): \w+: cannot be read", caplog.text)
