"""A primary that is demoted while connections to it stay open: the next try goes to its successor."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.queue_harness import job
from workers.queue.contract import Accepted, Done, QueueUnavailable
from workers.queue.embedded import EmbeddedServer
from workers.queue.redis.client import connect
from workers.queue.redis.queue import RedisQueue

pytestmark = pytest.mark.slow


class Forwarder:
    """One address for several servers, as of a load balancer: it picks one when a connection opens."""

    def __init__(self) -> None:
        self.target = self.port = self.opened = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self, target: int) -> AsyncIterator[Forwarder]:
        self.target = target
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        yield self
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.target)
        for pair in ((reader, to_writer), (to_reader, writer)):
            self._tasks.add(asyncio.create_task(_copy(*pair)))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with (
        EmbeddedServer.start(tmp_path / "a", fsync="no") as first,
        EmbeddedServer.start(tmp_path / "b", fsync="no") as second,
    ):
        yield first, second


async def paired(first: EmbeddedServer, second: EmbeddedServer) -> tuple[Any, Any]:
    """A client of each. The second is the first's replica, and both have one password."""
    password = first.url.split(":")[2].split("@")[0]
    a: Any = connect(first.url)
    b: Any = connect(second.url)
    await a.config_set("masterauth", password)
    await b.config_set("masterauth", password)
    await b.config_set("requirepass", password)
    await b.replicaof("127.0.0.1", first.port)
    await a.set("written", "before")
    assert await a.execute_command("WAIT", 1, 30_000) == 1
    return a, b


async def test_a_demoted_primary_is_left_within_the_callers_patience(
    servers: tuple[EmbeddedServer, EmbeddedServer],
) -> None:
    first, second = servers
    a, b = await paired(first, second)
    async with Forwarder().running(first.port) as forwarder:
        queue = RedisQueue.open(first.url.replace(f":{first.port}/", f":{forwarder.port}/"), "m", replicas=1)
        # At once, so that many connections lie in the pool.
        await asyncio.gather(*(queue.submit([job(f"before{n}")]) for n in range(20)))
        assert forwarder.opened > 5
        await b.replicaof("NO", "ONE")
        await a.replicaof("127.0.0.1", second.port)
        forwarder.target = second.port
        after = [await queue.submit([job(f"after{n}")], within_ms=20_000) for n in range(3)]
        assert all(isinstance(answer, Accepted) for (answer,) in after)
        leases = await queue.claim(100, 60_000, "w")
        assert len(leases) == 23
        assert all(await queue.settle([Done(x.id, x.token, b"r") for x in leases]))
        assert await b.hget("hr:{m}:counts", "t_done") == b"23"
        await queue.close()
    await a.aclose()
    await b.aclose()


async def test_while_there_is_no_successor_it_is_said_so(
    servers: tuple[EmbeddedServer, EmbeddedServer],
) -> None:
    first, second = servers
    a, b = await paired(first, second)
    queue = RedisQueue.open(first.url, "m")
    await b.replicaof("NO", "ONE")
    await a.replicaof("127.0.0.1", second.port)
    with pytest.raises(QueueUnavailable, match=r"READONLY|ReadOnly"):
        await queue.submit([job("a")], within_ms=200)
    await queue.close()
    await a.aclose()
    await b.aclose()
