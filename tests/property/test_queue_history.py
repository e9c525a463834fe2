"""Real concurrency: several clients and workers on one server, then what their history must satisfy.

The checker itself is tested first: it must find each kind of wrong that it is there for.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizers.tensors import pack
from tests.chaos.check import Verdict, judge
from tests.queue_harness import job
from workers.queue.contract import Accepted, Done, Failed, Outcome, Release
from workers.queue.embedded import EmbeddedServer
from workers.queue.job import JobState, JobStatus, Lease
from workers.queue.redis.queue import RedisQueue
from workers.queue.retry import RetryPolicy
from workers.queue.settings import QueueSettings

JOBS_PER_CLIENT = 150
RESULT = pack({"y": np.full((1, 1), 14.0, np.float32)})


def accepted(id: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "deadline_ms": 1000, "kind": "", "value": 7, **more}


def status(id: str, state: JobState = JobState.DONE, **more: Any) -> JobStatus:
    found = JobStatus(id, state, 1000, 0, 1, finished_ms=500, result=RESULT)
    return replace(found, **more)


def verdict(
    jobs: list[dict[str, Any]],
    found: Mapping[str, JobStatus | None],
    events: list[dict[str, Any]],
    done: int | None = None,
) -> Verdict:
    count = sum(s is not None and s.state is JobState.DONE for s in found.values())
    return judge(jobs, found, events, count if done is None else done)


def test_a_clean_history_is_good() -> None:
    events: list[dict[str, Any]] = [
        {"kind": "claim", "at_ms": 100, "jobs": [["a", 1000, 0]]},
        {"kind": "done", "jobs": [["a", "t"]]},
    ]
    found = verdict([accepted("a")], {"a": status("a")}, events)
    assert found.good
    assert (found.accepted, found.done) == (1, 1)


def test_the_checker_finds_what_was_lost() -> None:
    assert verdict([accepted("a")], {"a": None}, []).lost == 1
    assert verdict([accepted("a")], {"a": status("a", JobState.LEASED, finished_ms=None)}, []).lost == 1


def test_the_checker_finds_what_was_doubled() -> None:
    events = [{"kind": "done", "jobs": [["a", "t1"]]}, {"kind": "done", "jobs": [["a", "t2"]]}]
    assert verdict([accepted("a")], {"a": status("a")}, events).doubled == 1
    assert verdict([accepted("a")], {"a": status("a")}, [], done=2).doubled == 1


def test_the_checker_finds_wrong_results_and_wrong_blame() -> None:
    assert verdict([accepted("a", value=8)], {"a": status("a")}, []).wrong == 1
    assert verdict([accepted("a", kind="poison")], {"a": status("a")}, []).wrong == 1
    assert verdict([accepted("a")], {"a": status("a", JobState.FAILED)}, []).blamed == 1
    assert verdict([accepted("a")], {"a": status("a", JobState.DEAD)}, []).blamed == 1
    assert verdict([accepted("a", kind="hang")], {"a": status("a", JobState.DEAD)}, []).good
    assert verdict([accepted("a", kind="hang")], {"a": status("a")}, []).wrong == 1
    early = status("a", JobState.EXPIRED, deadline_ms=5000)
    assert verdict([accepted("a")], {"a": early}, []).wrong == 1


def test_the_checker_finds_a_claim_that_passed_over_an_earlier_deadline() -> None:
    jobs = [accepted("soon"), accepted("late", deadline_ms=9000)]
    found = {"soon": status("soon"), "late": status("late", deadline_ms=9000)}
    passed_over = [
        {"kind": "claim", "at_ms": 100, "jobs": [["late", 9000, 0]]},
        {"kind": "claim", "at_ms": 200, "jobs": [["soon", 1000, 0]]},
    ]
    assert verdict(jobs, found, passed_over).out_of_order == 1
    assert verdict(jobs, found, passed_over[::-1]).out_of_order == 1
    in_order = [dict(passed_over[1], at_ms=50), passed_over[0]]
    assert verdict(jobs, found, in_order).out_of_order == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    folder: Path = tmp_path_factory.mktemp("queue")
    with EmbeddedServer.start(folder, fsync="no") as running:
        yield running


class Worker:
    """Claims and settles at random: results, failures, releases, leases left to run out, stale tokens."""

    def __init__(self, queue: RedisQueue, events: list[dict[str, Any]], seed: int) -> None:
        self.queue, self.events = queue, events
        self.rng = random.Random(seed)
        self.abandoned: list[Lease] = []

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            leases = await self.queue.claim(self.rng.randint(1, 8), 30, f"w{id(self)}")
            if not leases:
                await self.queue.reap()
                await self.queue.wait_for_work(0.02)
                continue
            at_ms = leases[0].lease_until_ms - 30
            jobs = [[x.id, x.deadline_ms, x.lost] for x in leases]
            self.events.append({"kind": "claim", "at_ms": at_ms, "jobs": jobs})
            if self.rng.random() < 0.3:
                await self.queue.extend([x.ref for x in leases], 30)
            await self.settle([self.outcome(x) for x in leases])
            await self.settle([Done(x.id, x.token, RESULT) for x in self.abandoned])
            self.abandoned = [x for x in leases if self.rng.random() < 0.05]

    def outcome(self, lease: Lease) -> Outcome:
        chance = self.rng.random()
        if chance < 0.7:
            return Done(lease.id, lease.token, RESULT)
        if chance < 0.8:
            return Failed(lease.id, lease.token, "flaky")
        if chance < 0.9:
            return Release(lease.id, lease.token)
        return Release(lease.id, "stale")  # left leased until its lease runs out

    async def settle(self, outcomes: list[Outcome]) -> None:
        won = await self.queue.settle(outcomes)
        done = [[o.id, o.token] for o, w in zip(outcomes, won, strict=True) if w and isinstance(o, Done)]
        self.events.append({"kind": "done", "jobs": done})
        assert not any(w for o, w in zip(outcomes, won, strict=True) if o.token == "stale")


async def client(queue: RedisQueue, name: str, seed: int) -> list[dict[str, Any]]:
    """Submits in bursts, some twice, cancels a few; waits until each has ended."""
    rng = random.Random(seed)
    mine: dict[str, dict[str, Any]] = {}
    serial = 0
    while serial < JOBS_PER_CLIENT:
        burst = [
            job(f"{name}-{serial + i}", rng.randint(5_000, 60_000), max_attempts=50)
            for i in range(rng.randint(1, 9))
        ]
        serial += len(burst)
        for answer in [*await queue.submit(burst), *await queue.submit(rng.sample(burst, 1))]:
            assert isinstance(answer, Accepted)
            mine[answer.id] = accepted(answer.id, deadline_ms=answer.deadline_ms)
        if rng.random() < 0.1:
            await queue.cancel(burst[0].id)
    left = list(mine)
    while left:
        ended = {s.id for s in await queue.wait(left, 20)}
        assert ended, f"nothing ended of {len(left)}"
        left = [id for id in left if id not in ended]
    return list(mine.values())


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_accepted_job_ends_exactly_once_whoever_interferes(
    server: EmbeddedServer, seed: int
) -> None:
    settings = QueueSettings(max_lost_leases=1000, suspect_after=1000, retry=RetryPolicy(1, 20))
    queues = [RedisQueue.open(server.url, f"history{seed}", settings) for _ in range(3)]
    events: list[dict[str, Any]] = []
    stop = asyncio.Event()
    workers = [asyncio.create_task(Worker(queues[n % 3], events, seed * 10 + n).run(stop)) for n in range(5)]
    clients = [client(queues[n % 3], f"c{n}", seed * 100 + n) for n in range(6)]
    jobs = [a for some in await asyncio.wait_for(asyncio.gather(*clients), 60) for a in some]
    stop.set()
    await asyncio.gather(*workers)
    statuses = {a["id"]: await queues[0].state(a["id"]) for a in jobs}
    stats = await queues[0].stats()
    found = judge(jobs, statuses, events, stats.totals["done"])
    assert found.good, found
    assert found.accepted == found.done + stats.totals["cancelled"] == stats.totals["submitted"]
    assert stats.totals["lost"] > 0, "leases ran out, or this showed nothing"
    assert (stats.jobs, stats.rows, stats.bytes, stats.waiting_rows, stats.leased_jobs) == (0, 0, 0, 0, 0)
    for queue in queues:
        await queue.close()
