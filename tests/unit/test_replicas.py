"""Which replica a batch goes to: the least busy one, never one that just failed, and any if none is known."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from router.replicas import Replicas
from tests.support.virtual_time import in_virtual_time, settled


class Actor:
    """Answers with its name once ``may_answer`` is set, or raises ``fault``."""

    def __init__(self, name: str) -> None:
        self.name, self.calls = name, 0
        self.fault: Exception | None = None
        self.may_answer = asyncio.Event()

    async def run(self, variant: str, message: bytes) -> bytes:
        self.calls += 1
        await self.may_answer.wait()
        if self.fault:
            raise self.fault
        return self.name.encode()


class Source:
    """A deployment in memory. ``fault``: it cannot tell which replicas there are."""

    def __init__(self, *names: str) -> None:
        self.living = {name: Actor(name) for name in names}
        self.fault: Exception | None = None
        self.asked = 0

    async def run(self, variant: str, message: bytes) -> bytes:
        return b"by the handle"

    async def actors(self) -> Mapping[str, Actor]:
        self.asked += 1
        if self.fault:
            raise self.fault
        return dict(self.living)


async def two() -> tuple[Source, Replicas]:
    source = Source("a", "b")
    replicas = Replicas(source)
    await replicas.refresh()
    return source, replicas


@in_virtual_time
async def test_before_any_replica_is_known_the_handle_is_used() -> None:
    source = Source("a")
    assert await Replicas(source).send("v", b"") == b"by the handle"
    assert source.living["a"].calls == 0


@in_virtual_time
async def test_each_batch_goes_to_the_replica_with_the_fewest_in_flight() -> None:
    source, replicas = await two()
    tasks = [asyncio.create_task(replicas.send("v", b"")) for _ in range(4)]
    await settled()
    assert [actor.calls for actor in source.living.values()] == [2, 2]
    source.living["b"].may_answer.set()
    await settled()
    more = [asyncio.create_task(replicas.send("v", b"")) for _ in range(2)]
    await settled()
    assert [actor.calls for actor in source.living.values()] == [2, 4]
    source.living["a"].may_answer.set()
    assert sorted(await asyncio.gather(*tasks, *more)) == [b"a"] * 2 + [b"b"] * 4


@in_virtual_time
async def test_a_failed_replica_is_left_alone_until_it_is_named_again() -> None:
    source, replicas = await two()
    for actor in source.living.values():
        actor.may_answer.set()
    source.living["a"].fault = ConnectionError("it died")
    with pytest.raises(ConnectionError, match="it died"):
        await replicas.send("v", b"")
    assert [await replicas.send("v", b"") for _ in range(3)] == [b"b"] * 3
    source.living["b"].fault = ConnectionError("this one too")
    with pytest.raises(ConnectionError):
        await replicas.send("v", b"")
    assert await replicas.send("v", b"") == b"by the handle"
    source.living = {"c": Actor("c")}
    source.living["c"].may_answer.set()
    await replicas.refresh()
    assert await replicas.send("v", b"") == b"c"
    assert replicas.known == ("c",)


@in_virtual_time
async def test_a_replica_whose_answer_is_given_up_on_is_left_alone() -> None:
    source, replicas = await two()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5.0):
            await replicas.send("v", b"")
    assert replicas.known == ("b",)
    source.living["b"].may_answer.set()
    assert await replicas.send("v", b"") == b"b"


@in_virtual_time
async def test_a_replica_that_came_back_while_a_call_to_it_still_hangs_counts_that_call() -> None:
    source, replicas = await two()
    hanging = asyncio.create_task(replicas.send("v", b""))
    await settled()
    del source.living["a"]
    await replicas.refresh()
    source.living["a"] = Actor("a")
    await replicas.refresh()
    source.living = {"a": source.living["a"], "b": source.living["b"]}
    await replicas.refresh()
    next_one = asyncio.create_task(replicas.send("v", b""))
    await settled()
    assert [source.living[name].calls for name in "ab"] == [0, 1]
    for task in (hanging, next_one):
        task.cancel()
    await asyncio.gather(hanging, next_one, return_exceptions=True)


@in_virtual_time
async def test_the_list_is_kept_fresh_at_once_after_a_failure_and_through_a_silent_source() -> None:
    source = Source("a")
    replicas = Replicas(source)
    watch = asyncio.create_task(replicas.watch())
    await settled()
    assert "a" in replicas.known
    source.living["a"].may_answer.set()
    source.living["a"].fault = ConnectionError("gone")
    source.fault = RuntimeError("no replica is running")
    with pytest.raises(ConnectionError):
        await replicas.send("v", b"")
    began = asyncio.get_running_loop().time()
    while source.asked < 3:
        await asyncio.wait([watch], timeout=0.01)
    assert len(replicas.known) == 0
    source.fault = None
    source.living = {"b": Actor("b")}
    while "b" not in replicas.known:
        await asyncio.wait([watch], timeout=0.01)
    assert asyncio.get_running_loop().time() - began < 3.0
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


@in_virtual_time
async def test_how_many_there_are_is_told_whenever_it_changes() -> None:
    source = Source("a", "b")
    replicas = Replicas(source)
    counts: list[int] = []
    replicas.on_count = counts.append
    await replicas.refresh()
    await replicas.refresh()
    source.living["a"].fault = ConnectionError("gone")
    source.living["a"].may_answer.set()
    with pytest.raises(ConnectionError):
        await replicas.send("v", b"")
    del source.living["a"]
    await replicas.refresh()
    source.living["c"] = Actor("c")
    await replicas.refresh()
    assert counts == [2, 1, 2]
