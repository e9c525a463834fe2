"""Whoever uses the queue's server counts its restarts, from the server's own word."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError, NoPermissionError

from tests.support.virtual_time import in_virtual_time
from workers.queue.embedded import EmbeddedServer
from workers.queue.redis import client as redis_client
from workers.queue.redis import restarts


async def test_a_restart_is_counted_once_and_a_server_that_stays_never(tmp_path: Path) -> None:
    server = EmbeddedServer.start(tmp_path)
    client = redis_client.connect(server.url)
    seen, count = asyncio.Event(), 0

    def restarted() -> None:
        nonlocal count
        count += 1
        seen.set()

    watching = asyncio.create_task(restarts.watch(client, restarted, every_s=0.01))
    await asyncio.to_thread(_hear_from, server)
    for number in (1, 2):
        assert count == number - 1
        os.kill(server.pid, signal.SIGKILL)
        server.wait_until_it_ends()
        await asyncio.to_thread(server.start_again)
        async with asyncio.timeout(20):
            await seen.wait()
        seen.clear()
    await asyncio.to_thread(_hear_from, server)
    assert count == 2 and not watching.done()
    watching.cancel()
    await client.aclose()
    server.stop()


def _hear_from(server: EmbeddedServer) -> None:
    """Until the server has answered several questions of the watcher's."""
    import redis

    with redis.Redis.from_url(server.url) as asking:
        before = asking.info("commandstats").get("cmdstat_info", {"calls": 0})["calls"]
        while asking.info("commandstats")["cmdstat_info"]["calls"] < before + 20:
            pass


class Scripted:
    """A client whose server answers by a script: a run id, or an error to raise."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)

    async def info(self, section: str) -> dict[str, str]:
        assert section == "server"
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return {"run_id": answer}


@pytest.mark.parametrize(
    ("answers", "restarted"),
    [
        (("a", ConnectionError("gone"), "a"), 0),
        (("a", ConnectionError("gone"), TimeoutError(), "b"), 1),
        ((ConnectionError("not there yet"), "a"), 0),
        ((NoPermissionError("INFO"),), 0),
        (("a", "b", "a"), 2),
    ],
)
@in_virtual_time
async def test_what_is_not_known_counts_as_nothing(answers: tuple[object, ...], restarted: int) -> None:
    counted: list[int] = []
    client: object = Scripted(*answers)  # type: ignore[arg-type]
    watching = asyncio.create_task(restarts.watch(client, lambda: counted.append(1)))  # type: ignore[arg-type]
    await asyncio.sleep(20)
    assert len(counted) == restarted and not watching.done()
    watching.cancel()
