"""Keys that vanish from the queue's server, evicted or deleted by hand: what is left is cleared away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.queue_harness import Harness, job, on_redis
from workers.queue.contract import Done, Failed
from workers.queue.embedded import EmbeddedServer
from workers.queue.job import JobState
from workers.queue.settings import QueueSettings


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    folder: Path = tmp_path_factory.mktemp("queue")
    with EmbeddedServer.start(folder, fsync="no") as running:
        yield running


@pytest.fixture
async def harness(server: EmbeddedServer) -> AsyncIterator[Harness]:
    made = await on_redis(server.url, QueueSettings(tenant_jobs=250))
    yield made
    await made.close()


async def vanish(harness: Harness, *names: str) -> None:
    queue: Any = harness.queue
    assert await queue._client.unlink(*(f"{queue._keys.base}:{name}" for name in names)) == len(names)


async def finish_all(harness: Harness) -> list[str]:
    done: list[str] = []
    while leases := await harness.queue.claim(64, 60_000, "w"):
        assert all(await harness.queue.settle([Done(x.id, x.token, b"r") for x in leases]))
        done += [x.id for x in leases]
    return done


async def nothing_is_left(harness: Harness, orphaned: int) -> None:
    stats = await harness.queue.stats()
    assert (stats.jobs, stats.rows, stats.bytes, stats.waiting_rows) == (0, 0, 0, 0)
    assert (stats.waiting_jobs, stats.leased_jobs, stats.delayed_jobs) == (0, 0, 0)
    assert stats.totals["orphaned"] == orphaned
    assert not await harness.queue.wait_for_work(0.0)
    # The tenant's whole bound is free again.
    answers = await harness.queue.submit([job(f"new{n}", tenant="t") for n in range(250)])
    assert {type(a).__name__ for a in answers} == {"Accepted"}


async def test_a_waiting_job_whose_record_is_gone_holds_up_nobody(harness: Harness) -> None:
    await harness.queue.submit([job(f"j{n:03d}", tenant="t", rows=3) for n in range(200)])
    await vanish(harness, "job:j000", "job:j100")
    done = await finish_all(harness)
    assert done == [f"j{n:03d}" for n in range(200) if n not in (0, 100)]
    await nothing_is_left(harness, 2)


async def test_a_waiting_job_whose_payload_is_gone_fails_and_says_why(harness: Harness) -> None:
    await harness.queue.submit([job(f"j{n:03d}", tenant="t") for n in range(10)])
    await vanish(harness, "data:j000", "data:j005")
    assert len(await finish_all(harness)) == 8
    for id in ("j000", "j005"):
        status = await harness.queue.state(id)
        assert status is not None and status.state is JobState.FAILED
        assert "its payload is gone" in (status.error or "")
    await nothing_is_left(harness, 2)


async def test_a_leased_job_whose_record_is_gone_ends_with_its_lease(harness: Harness) -> None:
    await harness.queue.submit([job("a", tenant="t"), job("b", tenant="t")])
    a, b = await harness.queue.claim(2, 1000, "w")
    await vanish(harness, "job:a")
    assert await harness.queue.extend([a.ref, b.ref], 1000) == [False, True]
    assert await harness.queue.settle([Done("a", a.token, b"r")]) == [False]
    await harness.advance(1500)
    assert await harness.queue.reap() == 2
    assert await finish_all(harness) == ["b"]
    await nothing_is_left(harness, 1)


async def test_a_job_in_backoff_whose_record_is_gone_ends_with_it(harness: Harness) -> None:
    await harness.queue.submit([job("a"), job("b")])
    for lease in await harness.queue.claim(2, 1000, "w"):
        await harness.queue.settle([Failed(lease.id, lease.token, "boom")])
    await vanish(harness, "job:a")
    await harness.advance(5000)
    assert await harness.queue.reap() == 2
    assert await finish_all(harness) == ["b"]
    await nothing_is_left(harness, 1)


async def test_late_jobs_whose_records_are_gone_do_not_stop_the_reaper(harness: Harness) -> None:
    await harness.queue.submit([job(f"j{n}", 1000, tenant="t") for n in range(5)])
    await vanish(harness, "job:j0", "job:j3", "data:j4")
    await harness.advance(2000)
    assert await harness.queue.reap() == 5
    assert (await harness.queue.stats()).totals["expired"] == 3
    await nothing_is_left(harness, 2)


async def test_what_is_left_of_a_job_is_not_promoted_or_mixed_up_with_a_new_one(
    harness: Harness,
) -> None:
    await harness.queue.submit([job("a"), job("b"), job("c")])
    await vanish(harness, "job:a", "data:b")
    assert [w.id for w in await harness.queue.peek(5)] == ["b", "c"]
    assert [x.id for x in await harness.queue.promote(["a", "b"], 1000, "router")] == []
    await harness.queue.submit([job("a", rows=2, payload=b"another")])
    assert sorted(await finish_all(harness)) == ["a", "c"]
    await nothing_is_left(harness, 2)


async def test_a_line_that_is_gone_keeps_nobody_awake(harness: Harness) -> None:
    await harness.queue.submit([job("a", tenant="t")])
    await vanish(harness, "wait:t")
    assert await harness.queue.claim(5, 1000, "w") == []
    assert not await harness.queue.wait_for_work(0.0)


async def test_dead_letters_whose_records_are_gone_are_left_out_and_can_be_dropped(harness: Harness) -> None:
    await harness.queue.submit([job(f"j{n}", max_attempts=1) for n in range(3)])
    for lease in await harness.queue.claim(3, 1000, "w"):
        await harness.queue.settle([Failed(lease.id, lease.token, "boom")])
    await vanish(harness, "job:j1")
    assert sorted(x.id for x in await harness.queue.dead_letters()) == ["j0", "j2"]
    assert await harness.queue.show_dead("j1") is None
    assert await harness.queue.retry_dead(["j0", "j1"], 60_000) == ["j0"]
    assert await harness.queue.drop_dead(["j1", "j2"]) == ["j1", "j2"]
    assert (await harness.queue.stats()).dead_letters == 0
