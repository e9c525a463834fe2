"""A batch goes to the replica that is named, never to one that just failed, and to any if none is known."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from router.online.replicas import OwnSource, Replicas
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


class ReplicaSource:
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


async def two() -> tuple[ReplicaSource, Replicas]:
    source = ReplicaSource("a", "b")
    replicas = Replicas(source)
    await replicas.refresh()
    return source, replicas


@in_virtual_time
async def test_before_any_replica_is_known_the_handle_is_used() -> None:
    source = ReplicaSource("a")
    assert await Replicas(source).send("v", b"") == b"by the handle"
    assert source.living["a"].calls == 0


@in_virtual_time
async def test_a_batch_goes_to_the_replica_that_is_named_and_by_the_handle_where_that_is_not_there() -> None:
    source, replicas = await two()
    for actor in source.living.values():
        actor.may_answer.set()
    assert [await replicas.send("v", b"", name) for name in "abba"] == [b"a", b"b", b"b", b"a"]
    assert await replicas.send("v", b"", "c") == b"by the handle"
    assert await replicas.send("v", b"") == b"by the handle"


@in_virtual_time
async def test_a_failed_replica_is_left_alone_until_it_is_named_again() -> None:
    source, replicas = await two()
    source.living["a"].may_answer.set()
    source.living["a"].fault = ConnectionError("it died")
    with pytest.raises(ConnectionError, match="it died"):
        await replicas.send("v", b"", "a")
    assert replicas.known == ("b",)
    assert await replicas.send("v", b"", "a") == b"by the handle"
    assert source.living["a"].calls == 1
    source.living["a"].fault = None
    await replicas.refresh()
    assert await replicas.send("v", b"", "a") == b"a"


@in_virtual_time
async def test_a_replica_whose_answer_is_given_up_on_is_left_alone() -> None:
    _, replicas = await two()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5.0):
            await replicas.send("v", b"", "a")
    assert replicas.known == ("b",)


@in_virtual_time
async def test_the_late_failure_of_a_replica_does_not_put_out_the_one_that_took_its_name() -> None:
    source, replicas = await two()
    first = source.living["a"]
    hanging = asyncio.create_task(replicas.send("v", b"", "a"))
    await settled()
    del source.living["a"]
    await replicas.refresh()
    source.living["a"] = Actor("a")
    await replicas.refresh()
    first.fault = ConnectionError("long gone")
    first.may_answer.set()
    with pytest.raises(ConnectionError):
        await hanging
    assert set(replicas.known) == {"a", "b"}


@in_virtual_time
async def test_the_list_is_kept_fresh_at_once_after_a_failure_and_through_a_silent_source() -> None:
    source = ReplicaSource("a")
    replicas = Replicas(source)
    watch = asyncio.create_task(replicas.watch())
    await settled()
    assert "a" in replicas.known
    source.living["a"].may_answer.set()
    source.living["a"].fault = ConnectionError("gone")
    source.fault = RuntimeError("no replica is running")
    with pytest.raises(ConnectionError):
        await replicas.send("v", b"", "a")
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
async def test_which_there_are_is_told_whenever_it_changes() -> None:
    source = ReplicaSource("a", "b")
    replicas = Replicas(source)
    told: list[set[str]] = []
    replicas.on_change = lambda names: told.append(set(names))
    await replicas.refresh()
    await replicas.refresh()
    source.living["a"].fault = ConnectionError("gone")
    source.living["a"].may_answer.set()
    with pytest.raises(ConnectionError):
        await replicas.send("v", b"", "a")
    del source.living["a"]
    await replicas.refresh()
    source.living["c"] = Actor("c")
    await replicas.refresh()
    assert told == [{"a", "b"}, {"b"}, {"b", "c"}]


@in_virtual_time
async def test_a_model_of_the_routers_own_is_one_replica_that_is_back_after_a_failure() -> None:
    own = Actor("own")
    replicas = Replicas(OwnSource(own))
    own.may_answer.set()
    assert await replicas.send("v", b"") == b"own"
    await replicas.refresh()
    assert replicas.known == ("own",)
    own.fault = ValueError("boom")
    with pytest.raises(ValueError, match="boom"):
        await replicas.send("v", b"", "own")
    assert replicas.known == ()
    own.fault = None
    await replicas.refresh()
    assert await replicas.send("v", b"", "own") == b"own"
