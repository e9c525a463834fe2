"""What only the queue on a server has: keys that go away, refusals that pass, answers that got lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import BusyLoadingError, ConnectionError, OutOfMemoryError, ReadOnlyError, ResponseError

import workers.queue.redis.keys
from tests.queue_harness import job
from workers.queue.contract import Accepted, Done, Failed, QueueIncompatible, QueueUnavailable
from workers.queue.embedded import EmbeddedServer
from workers.queue.redis.keys import FIELDS, Keys
from workers.queue.redis.queue import RedisQueue
from workers.queue.settings import QueueSettings

SHORT = QueueSettings(keep_ms=600_000, keep_dead_ms=900_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    folder: Path = tmp_path_factory.mktemp("queue")
    with EmbeddedServer.start(folder, fsync="no") as running:
        yield running


@pytest.fixture
async def queue(server: EmbeddedServer) -> AsyncIterator[RedisQueue]:
    opened = RedisQueue.open(server.url, "m", SHORT)
    await opened._client.flushall()
    yield opened
    await opened.close()


async def keys(queue: RedisQueue) -> dict[str, int]:
    """Key without its prefix -> time to live in ms, -1 for ever."""
    client: Any = queue._client
    names = [name.decode() for name in await client.keys("*")]
    return {name.removeprefix("hr:{m}:"): await client.pttl(name) for name in names}


async def test_all_keys_of_a_queue_share_one_slot_and_are_documented(queue: RedisQueue) -> None:
    await queue.submit([job("a", key="k", tenant="t", variant="v"), job("b"), job("c", max_attempts=1)])
    leases = {x.id: x for x in await queue.claim(2, 1000, "w")}
    for id, lease in leases.items():
        await queue.settle([Failed(id, lease.token, "boom")])
    client: Any = queue._client
    names = [name.decode() for name in await client.keys("*")]
    assert all(name.startswith("hr:{m}:") for name in names)
    kinds = {name.removeprefix("hr:{m}:").split(":")[0] for name in names}
    documented = workers.queue.redis.keys.__doc__ or ""
    assert all(f"base:{kind}" in documented for kind in kinds)
    fields = {f.decode() for name in names if ":job:" in name for f in await client.hkeys(name)}
    assert fields <= set(FIELDS) | {"w", "lt"}


@pytest.mark.parametrize("model", ["", "a b", "a{b", "}"])
def test_a_model_name_that_breaks_the_slot_is_refused(model: str) -> None:
    with pytest.raises(ValueError, match="model name"):
        Keys.of(model)


async def test_what_has_ended_goes_away_by_itself(queue: RedisQueue) -> None:
    names = ["done", "failed", "cancelled", "missed"]
    await queue.submit([job(i, key=f"k-{i}") for i in names])
    done, failed, *_ = await queue.claim(2, 1000, "w")
    await queue.settle([Done(done.id, done.token, b"r"), Failed(failed.id, failed.token, "x", retry=False)])
    for name in names[2:]:
        await queue.cancel(name)
    left = await keys(queue)
    for name in names:
        assert 0 < left[f"job:{name}"] <= 600_000
        assert 0 < left[f"key::k-{name}"] <= 600_000
    assert {k for k in left if k.startswith("data:")} == {"data:done"}
    assert 0 < left["data:done"] <= 600_000
    # For ever: only the counters, which do not grow.
    assert {k for k, ttl in left.items() if ttl == -1} == {"counts"}


async def test_a_dead_letter_keeps_its_payload_for_its_own_time(queue: RedisQueue) -> None:
    await queue.submit([job("a", max_attempts=1)])
    (lease,) = await queue.claim(1, 1000, "w")
    await queue.settle([Failed("a", lease.token, "boom")])
    left = await keys(queue)
    assert 600_000 < left["job:a"] <= 900_000
    assert 600_000 < left["data:a"] <= 900_000
    await queue.retry_dead(["a"], 60_000)
    left = await keys(queue)
    assert left["job:a"] == left["data:a"] == -1


async def test_many_jobs_through_leave_nothing_behind(server: EmbeddedServer) -> None:
    queue = RedisQueue.open(server.url, "m", QueueSettings(keep_ms=1))
    client: Any = queue._client
    await client.flushall()
    for part in range(20):
        await queue.submit([job(f"{part}-{i}", tenant=f"t{i % 7}", key=f"{part}-{i}") for i in range(500)])
        while leases := await queue.claim(256, 60_000, "w"):
            await queue.settle([Done(x.id, x.token, b"r") for x in leases])
    stats = await queue.stats()
    assert stats.totals["done"] == 10_000
    assert (stats.jobs, stats.rows, stats.bytes, stats.waiting_rows) == (0, 0, 0, 0)
    # Touching what is too old removes it at once, whether or not the server has come round to it.
    await client.eval("for _, k in ipairs(redis.call('KEYS', '*')) do redis.call('EXISTS', k) end", 0)
    left = [k for k in await keys(queue) if not k.startswith("claim:")]
    assert left == ["counts"]
    await queue.close()


async def test_a_claim_whose_answer_was_lost_is_answered_again(
    queue: RedisQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    await queue.submit([job("a"), job("b")])
    real = queue._call._call
    lost: list[Any] = []

    async def forgetful(script: Any, args: Any) -> Any:
        answer = await real(script, args)
        if script.name == "claim" and not lost:
            lost.append(answer)
            raise ConnectionError("connection reset")
        return answer

    monkeypatch.setattr(queue._call, "_call", forgetful)
    leases = await queue.claim(5, 60_000, "w")
    assert lost
    assert [x.id for x in leases] == ["a", "b"]
    assert await queue.settle([Done(x.id, x.token, b"r") for x in leases]) == [True, True]


async def test_a_submit_and_a_settle_whose_answers_were_lost_count_once(
    queue: RedisQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = queue._call._call
    lost: list[str] = []

    async def forgetful(script: Any, args: Any) -> Any:
        answer = await real(script, args)
        if script.name not in lost:
            lost.append(script.name)
            raise ConnectionError("connection reset")
        return answer

    monkeypatch.setattr(queue._call, "_call", forgetful)
    (answer,) = await queue.submit([job("a")])
    assert isinstance(answer, Accepted)
    (lease,) = await queue.claim(1, 60_000, "w")
    assert await queue.settle([Done("a", lease.token, b"r")]) == [True]
    stats = await queue.stats()
    assert (stats.totals["submitted"], stats.totals["done"], stats.jobs) == (1, 1, 0)


@pytest.mark.parametrize(
    "refusal",
    [
        BusyLoadingError("LOADING dataset in memory"),
        ReadOnlyError("You can't write against a read only replica."),
        OutOfMemoryError("OOM command not allowed"),
        ResponseError("MISCONF Errors writing to the AOF file"),
        OSError(111, "Connection refused"),
    ],
)
async def test_a_refusal_that_passes_is_outlasted_and_else_typed(
    queue: RedisQueue, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    real = queue._call._call
    refusals = [refusal, refusal]

    async def refusing(script: Any, args: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return await real(script, args)

    monkeypatch.setattr(queue._call, "_call", refusing)
    assert isinstance((await queue.submit([job("a")]))[0], Accepted)
    refusals += [refusal] * 1000
    with pytest.raises(QueueUnavailable, match="submit"):
        await queue.submit([job("b")], within_ms=30)


async def test_a_refusal_that_stays_is_told_at_once(
    queue: RedisQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def old(script: Any, args: Any) -> Any:
        raise ResponseError("ERR user_script:1: unexpected symbol near '#' (shebang)")

    monkeypatch.setattr(queue._call, "_call", old)
    with pytest.raises(QueueIncompatible, match="Redis 7"):
        await queue.submit([job("a")])


async def test_a_server_out_of_memory_takes_nothing_in_but_lets_work_out(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path, fsync="no", max_memory_bytes=12 << 20) as server:
        queue = RedisQueue.open(server.url, "m")
        accepted = 0
        with pytest.raises(QueueUnavailable, match="OutOfMemory"):
            for i in range(400):
                await queue.submit([job(f"j{i}", payload=b"x" * 65_536)], within_ms=20)
                accepted += 1
        assert accepted > 10
        while leases := await queue.claim(16, 60_000, "w"):
            assert all(await queue.settle([Done(x.id, x.token, b"r") for x in leases]))
        assert (await queue.stats()).totals["done"] == accepted
        assert isinstance((await queue.submit([job("again")]))[0], Accepted)
        await queue.close()


async def test_with_replicas_asked_for_an_unconfirmed_write_is_no_acceptance(server: EmbeddedServer) -> None:
    queue = RedisQueue.open(server.url, "lonely", replicas=1)
    queue._call._replicas_timeout_ms = 10
    with pytest.raises(QueueUnavailable, match="0 of 1 replicas"):
        await queue.submit([job("a")], within_ms=30)
    await queue.close()


async def test_a_replica_that_confirms_is_enough(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with (
        EmbeddedServer.start(tmp_path / "a", fsync="no") as primary,
        EmbeddedServer.start(tmp_path / "b", fsync="no") as replica,
    ):
        queue = RedisQueue.open(primary.url, "m", replicas=1)
        copy = RedisQueue.open(replica.url, "m")
        client: Any = copy._client
        password = primary.url.split(":")[2].split("@")[0]
        await client.config_set("masterauth", password)
        await client.replicaof("127.0.0.1", primary.port)
        assert isinstance((await queue.submit([job("a")], within_ms=20_000))[0], Accepted)
        assert (await copy.stats()).jobs == 1
        with pytest.raises(QueueUnavailable, match=r"READONLY|ReadOnly"):
            await copy.submit([job("b")], within_ms=30)
        await queue.close()
        await copy.close()


async def test_more_callers_than_connections_wait_instead_of_failing(queue: RedisQueue) -> None:
    answers = await asyncio.gather(*(queue.submit([job(f"j{i}")]) for i in range(300)))
    assert all(isinstance(a, Accepted) for (a,) in answers)


async def test_waiters_survive_a_lost_subscription(queue: RedisQueue) -> None:
    await queue.submit([job("a")])
    waiting = asyncio.create_task(queue.wait(["a"], 30))
    await queue._notifications.ready()
    client: Any = queue._client
    await client.client_kill_filter(_type="pubsub")
    (lease,) = await queue.claim(1, 60_000, "w")
    await queue.settle([Done("a", lease.token, b"r")])
    assert [s.id for s in await asyncio.wait_for(waiting, 10)] == ["a"]


async def test_nobody_is_notified_of_what_nobody_waits_for(queue: RedisQueue) -> None:
    client: Any = queue._client
    pubsub = client.pubsub()
    await pubsub.subscribe("hr:{m}:ended", "hr:{m}:work")
    await queue.submit([job("a")])
    (lease,) = await queue.claim(1, 60_000, "w")
    await queue.settle([Done("a", lease.token, b"r")])
    await client.publish("hr:{m}:ended", "end of test")
    seen = []
    async for message in pubsub.listen():
        if message["type"] == "message":
            seen.append(message["data"])
        if seen and seen[-1] == b"end of test":
            break
    assert seen == [b"end of test"]
    await pubsub.aclose()


async def test_a_large_submit_goes_in_parts_and_keeps_its_order(queue: RedisQueue) -> None:
    answers = await queue.submit([job(f"j{i:04d}", 60_000, payload=b"x" * 9000) for i in range(1200)])
    assert [a.id for a in answers] == [f"j{i:04d}" for i in range(1200)]
    # Each part has its own moment, so order by deadline is order of submission.
    leases = [x.id for _ in range(3) for x in await queue.claim(500, 60_000, "w")]
    assert leases == [f"j{i:04d}" for i in range(1200)]


async def test_a_call_that_is_cancelled_ends_wherever_it_is_cut_off(queue: RedisQueue) -> None:
    # redis-py sends through `asyncio.wait_for` where it is given a time, and that goes on on Python 3.11.
    await queue.stats()
    cut_off = 0
    for turns in range(40):
        task = asyncio.create_task(queue.stats())
        for _ in range(turns):
            await asyncio.sleep(0)
        if task.cancel():
            cut_off += 1
            await asyncio.wait({task})
            assert task.cancelled(), f"after {turns} turns of the loop it went on"
    assert cut_off > 5
    assert (await queue.stats()).waiting_jobs == 0


async def test_a_server_that_hangs_is_told_apart_from_one_that_is_slow(server: EmbeddedServer) -> None:
    queue = RedisQueue.open(server.url, "m", SHORT, patience_s=0.3)
    queue._call._timeout_s = 0.1
    await queue.stats()
    os.kill(server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(
            QueueUnavailable, match="did not serve it in time; last: TimeoutError: no answer in time"
        ):
            await queue.stats()
    finally:
        os.kill(server.pid, signal.SIGCONT)
    async with asyncio.timeout(10.0):
        while True:
            with contextlib.suppress(QueueUnavailable):
                await queue.stats()
                break
    await queue.close()
