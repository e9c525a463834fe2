"""The worker loop on the in-memory queue with models made for the test; no sleep, no server."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest

from optimizers.profile import LatencyProfile, fit
from optimizers.tensors import TensorError, Tensors, pack, rows_of, unpack
from workers.batch.loop import WorkerLoop
from workers.batch.settings import LoopSettings
from workers.execution.batch_model import VariantUnavailable
from workers.execution.faults import ModelFault
from workers.queue.job import JobState, JobStatus, Lease, LeaseRef, NewJob
from workers.queue.memory.queue import MemoryQueue
from workers.queue.settings import QueueSettings


class Doubler:
    """Doubles ``x``; negative values are poison."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[float]]] = []
        self.broken = False
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.closed = False

    def load(self, variant: str) -> LatencyProfile:
        if variant == "missing":
            raise VariantUnavailable("variant 'missing' cannot be loaded: no such folder")
        return fit({1: [0.01], 8: [0.02]})

    def check(self, variant: str, batch: Tensors) -> int:
        if "x" not in batch:
            raise TensorError("input 'x' is missing")
        return rows_of(batch)

    def run(self, variant: str, batch: Tensors) -> Tensors:
        self.entered.set()
        assert self.go.wait(10)
        values = batch["x"].ravel().tolist()
        self.batches.append((variant, values))
        if self.broken or min(values) < 0:
            raise ValueError("cannot double that")
        return {"y": batch["x"] * 2}

    def probe(self, variant: str) -> None:
        if self.broken:
            raise RuntimeError("device lost")

    def close(self) -> None:
        self.closed = True


class Watched(MemoryQueue):
    """Says when the worker has claimed a second time, renewed its leases, or gone to sleep."""

    def __init__(self, settings: QueueSettings | None = None) -> None:
        super().__init__("m", settings, rng=random.Random(1))
        self.claims = 0
        self.claimed_again, self.extended, self.asleep = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def claim(self, n: int, lease_ms: int, worker: str, *, max_rows: int | None = None) -> list[Lease]:
        leases = await super().claim(n, lease_ms, worker, max_rows=max_rows)
        self.claims += bool(leases)
        if self.claims == 2:
            self.claimed_again.set()
        return leases

    async def extend(self, held: Sequence[LeaseRef], lease_ms: int) -> list[bool]:
        kept = await super().extend(held, lease_ms)
        if held:
            self.extended.set()
        return kept

    async def wait_for_work(self, timeout_s: float) -> bool:
        self.asleep.set()
        return await super().wait_for_work(timeout_s)


def row(id: str, *values: float, budget_ms: int = 60_000, **more: object) -> NewJob:
    payload = pack({"x": np.array(values, dtype=np.float32).reshape(-1, 1)})
    return NewJob(id, payload, len(values), budget_ms, **more)  # type: ignore[arg-type]


def result(status: JobStatus | None) -> list[float]:
    assert status is not None and status.result is not None, status
    return list(unpack(status.result)[0]["y"].ravel())


async def drained(queue: MemoryQueue, ids: list[str]) -> dict[str, JobStatus]:
    left, ended = list(ids), {}
    while left:
        for status in await queue.wait(left, 10):
            ended[status.id] = status
        assert set(left) & set(ended), f"nothing ended of {left}"
        left = [i for i in left if i not in ended]
    return ended


Body = Callable[[Watched, Doubler, WorkerLoop], Awaitable[None]]


async def with_loop(body: Body, settings: LoopSettings | None = None, **queue_settings: object) -> Doubler:
    queue = Watched(QueueSettings(**queue_settings))  # type: ignore[arg-type]
    model = Doubler()
    loop = WorkerLoop(queue, model, "main", "w", settings, sched_idle=False)
    running = asyncio.create_task(loop.run())
    try:
        await body(queue, model, loop)
    finally:
        model.go.set()
        await loop.stop()
        await asyncio.wait_for(running, 10)
        await queue.close()
    assert model.closed
    return model


async def test_every_job_gets_its_own_rows_back() -> None:
    async def body(queue: Watched, model: Doubler, loop: WorkerLoop) -> None:
        await queue.submit([row(f"j{i}", i, i + 0.5) for i in range(20)])
        ended = await drained(queue, [f"j{i}" for i in range(20)])
        for i in range(20):
            assert result(ended[f"j{i}"]) == [2 * i, 2 * i + 1]
            assert ended[f"j{i}"].variant == "main"

    model = await with_loop(body)
    assert max(len(values) for _, values in model.batches) == 8


async def test_only_the_poison_fails() -> None:
    async def body(queue: Watched, model: Doubler, loop: WorkerLoop) -> None:
        model.go.clear()
        await queue.submit([row(f"j{i}", -1 if i in (3, 6) else i) for i in range(8)])
        model.go.set()
        ended = await drained(queue, [f"j{i}" for i in range(8)])
        failed = [i for i in range(8) if ended[f"j{i}"].state is JobState.FAILED]
        assert failed == [3, 6]
        assert ended["j3"].error == "ValueError: cannot double that"
        assert all(result(ended[f"j{i}"]) == [2 * i] for i in range(8) if i not in failed)

    await with_loop(body)


async def test_a_failing_job_of_many_rows_names_the_rows_at_fault() -> None:
    async def body(queue: Watched, model: Doubler, loop: WorkerLoop) -> None:
        await queue.submit([row("bulk", 1, -1, 3, 4, -5)])
        ended = await drained(queue, ["bulk"])
        assert ended["bulk"].state is JobState.FAILED
        assert ended["bulk"].error == "RowsAtFault: rows 1, 4 of 5: ValueError: cannot double that"

    await with_loop(body)


async def test_a_payload_that_is_no_input_fails_alone() -> None:
    async def body(queue: Watched, model: Doubler, loop: WorkerLoop) -> None:
        wrong = NewJob("wrong", pack({"z": np.zeros((1, 1))}), 1, 60_000)
        lies = NewJob("lies", row("x", 1, 2).payload, 5, 60_000)
        await queue.submit([NewJob("noise", b"\x01", 1, 60_000), wrong, lies, row("good", 4)])
        ended = await drained(queue, ["noise", "wrong", "lies", "good"])
        assert {i for i, s in ended.items() if s.state is JobState.FAILED} == {"noise", "wrong", "lies"}
        assert result(ended["good"]) == [8]

    await with_loop(body)


async def test_a_job_larger_than_a_batch_runs_in_pieces() -> None:
    async def body(queue: Watched, model: Doubler, loop: WorkerLoop) -> None:
        await queue.submit([row("big", *range(21))])
        ended = await drained(queue, ["big"])
        assert result(ended["big"]) == [2 * i for i in range(21)]

    model = await with_loop(body)
    assert [len(values) for _, values in model.batches] == [8, 8, 5]


async def test_a_pinned_variant_is_kept_and_never_mixed() -> None:
    async def body(queue: Watched, model: Doubler, loop: WorkerLoop) -> None:
        jobs = [row(f"j{i}", i, variant="other" if i % 2 else None) for i in range(6)]
        await queue.submit([*jobs, row("bad", 1, variant="missing")])
        ended = await drained(queue, [*(f"j{i}" for i in range(6)), "bad"])
        assert [ended[f"j{i}"].variant for i in range(6)] == ["main", "other"] * 3
        assert ended["bad"].state is JobState.FAILED
        assert "no such folder" in (ended["bad"].error or "")

    model = await with_loop(body)
    for variant, values in model.batches:
        assert {int(v) % 2 for v in values} == {1 if variant == "other" else 0}


async def test_stopping_settles_what_runs_and_gives_back_the_rest_at_once() -> None:
    queue = Watched()
    model = Doubler()
    model.go.clear()
    loop = WorkerLoop(queue, model, "main", "w", sched_idle=False)
    await queue.submit([row(f"j{i}", i, budget_ms=60_000 + i) for i in range(16)])
    running = asyncio.create_task(loop.run())
    await asyncio.to_thread(model.entered.wait, 10)
    await asyncio.wait_for(queue.claimed_again.wait(), 10)  # while the first batch runs
    await loop.stop()
    model.go.set()
    await asyncio.wait_for(running, 10)
    stats = await queue.stats()
    assert (stats.totals["done"], stats.waiting_jobs, stats.leased_jobs) == (8, 8, 0)
    (lease,) = await queue.claim(1, 1000, "other")
    assert (lease.id, lease.attempts, lease.lost) == ("j8", 0, 0)


async def test_a_cancelled_job_leaves_its_batch_alone() -> None:
    async def body(queue: Watched, model: Doubler, loop: WorkerLoop) -> None:
        model.go.clear()
        await queue.submit([row(f"j{i}", i) for i in range(4)])
        await asyncio.to_thread(model.entered.wait, 10)
        await queue.cancel("j0")
        await queue.cancel("j1")
        model.go.set()
        ended = await drained(queue, ["j2", "j3"])
        assert [result(ended["j2"]), result(ended["j3"])] == [[4], [6]]
        status = await queue.state("j0")
        assert status is not None and status.state is JobState.CANCELLED

    await with_loop(body)


async def test_leases_of_a_long_batch_are_renewed() -> None:
    async def body(queue: Watched, model: Doubler, loop: WorkerLoop) -> None:
        model.go.clear()
        await queue.submit([row("slow", 1)])
        await asyncio.to_thread(model.entered.wait, 10)
        (record,) = queue._records.values()
        before = record.lease_until_ms
        await asyncio.wait_for(queue.extended.wait(), 10)
        assert record.lease_until_ms > before
        model.go.set()
        assert result((await drained(queue, ["slow"]))["slow"]) == [2]

    await with_loop(body, LoopSettings(lease_ms=100))


async def test_what_cannot_be_met_is_reported_missed_and_not_run() -> None:
    now = [1_000_000]
    queue = MemoryQueue("m", now_ms=lambda: now[0])

    class Slow(Doubler):
        def load(self, variant: str) -> LatencyProfile:
            return fit({1: [5_000.0], 8: [6_000.0]})

    model = Slow()
    loop = WorkerLoop(queue, model, "main", "w", sched_idle=False)
    await queue.submit([row("hopeless", 1, budget_ms=2_000), row("fine", 2, budget_ms=60_000)])
    running = asyncio.create_task(loop.run())
    ended = await drained(queue, ["hopeless", "fine"])
    await loop.stop()
    await asyncio.wait_for(running, 10)
    assert ended["hopeless"].state is JobState.EXPIRED
    assert result(ended["fine"]) == [4]
    assert [values for _, values in model.batches] == [[2.0]]


async def test_a_broken_model_blames_no_row_and_ends_the_loop() -> None:
    queue = MemoryQueue("m")
    model = Doubler()
    model.broken = True
    loop = WorkerLoop(queue, model, "main", "w", sched_idle=False)
    await queue.submit([row("a", 1), row("b", 2)])
    with pytest.raises(ModelFault, match="device lost"):
        await asyncio.wait_for(loop.run(), 10)
    stats = await queue.stats()
    assert (stats.totals["failed"], stats.totals["dead"], stats.jobs) == (0, 0, 2)


async def test_an_idle_worker_is_woken_by_work() -> None:
    async def body(queue: Watched, model: Doubler, loop: WorkerLoop) -> None:
        await asyncio.wait_for(queue.asleep.wait(), 10)
        await queue.submit([row("a", 1)])
        assert result((await drained(queue, ["a"]))["a"]) == [2]

    await with_loop(body)


async def test_rows_are_counted_by_outcome() -> None:
    async def body(queue: Watched, model: Doubler, loop: WorkerLoop) -> None:
        await queue.submit([row("a", 1, 2), row("b", -1)])
        await drained(queue, ["a", "b"])
        assert loop.meter.rows == {("main", "done"): 2, ("main", "failed"): 1}
        assert sum(rows for _, rows, _ in loop.meter.batches) >= 3

    await with_loop(body)


async def test_jobs_whose_rows_differ_in_shape_are_run_in_batches_of_their_own() -> None:
    def long(id: str, size: int) -> NewJob:
        return NewJob(id, pack({"x": np.full((1, size), 1.0, np.float32)}), 1, 60_000)

    async def body(queue: Watched, model: Doubler, loop: WorkerLoop) -> None:
        model.go.clear()
        await queue.submit([row("first", 1)])
        await asyncio.to_thread(model.entered.wait, 10)
        await queue.submit([long("a", 5), long("b", 7), long("c", 5), long("d", 7)])
        await asyncio.wait_for(queue.claimed_again.wait(), 10)
        model.go.set()
        ended = await drained(queue, ["a", "b", "c", "d"])
        assert [len(result(ended[id])) for id in "abcd"] == [5, 7, 5, 7]

    model = await with_loop(body)
    assert [len(values) for _, values in model.batches] == [1, 10, 14]
