"""A bundled server that dies while it is watched: it comes back where it was, with what it had."""

from __future__ import annotations

import os
import queue
import signal
from pathlib import Path

import pytest

from tests.queue_harness import job
from workers.queue.embedded import EmbeddedServer
from workers.queue.redis.queue import RedisQueue
from workers.queue.supervisor import pause_s, supervised


class Said:
    """What the supervisor says, one text at a time."""

    def __init__(self) -> None:
        self._texts: queue.Queue[str] = queue.Queue()

    def __call__(self, text: str) -> None:
        self._texts.put(text)

    def next(self) -> str:
        return self._texts.get(timeout=40)


async def test_a_killed_server_is_started_again_with_every_job_and_says_so(tmp_path: Path) -> None:
    said, server = Said(), EmbeddedServer.start(tmp_path)
    with supervised(server, said):
        waiting = RedisQueue.open(server.url, "m", patience_s=30)
        await waiting.submit([job("a")])
        first, url = server.pid, server.url
        os.kill(first, signal.SIGKILL)
        death = said.next()
        assert "was killed by SIGKILL" in death and "Ready to accept connections" in death
        assert f"runs again on port {server.port}" in said.next()
        # The same client, and the address that other processes were given.
        assert (await waiting.state("a")) is not None
        assert server.url == url and server.pid != first
        os.kill(server.pid, signal.SIGKILL)
        assert "SIGKILL" in said.next() and "runs again" in said.next()
        assert [x.id for x in await waiting.claim(5, 1000, "w")] == ["a"]
        await waiting.close()
    assert not server.running
    EmbeddedServer.start(tmp_path).stop()


def test_a_server_that_cannot_start_again_is_tried_until_it_can(tmp_path: Path) -> None:
    said, server = Said(), EmbeddedServer.start(tmp_path)
    data = tmp_path / "appendonlydir"
    with supervised(server, said):
        data.rename(tmp_path / "kept")
        data.write_text("in the way")
        os.kill(server.pid, signal.SIGKILL)
        assert "was killed" in said.next()
        failed = said.next()
        assert "cannot be started again, next try in 0.5 s" in failed and "its log ends" in failed
        data.unlink()
        (tmp_path / "kept").rename(data)
        while "runs again" not in (text := said.next()):
            assert "next try in" in text
        assert server.running


def test_nothing_is_started_any_more_once_it_is_stopped(tmp_path: Path) -> None:
    said, server = Said(), EmbeddedServer.start(tmp_path)
    with supervised(server, said):
        (tmp_path / "appendonlydir").rename(tmp_path / "kept")
        (tmp_path / "appendonlydir").write_text("in the way")
        os.kill(server.pid, signal.SIGKILL)
        assert "was killed" in said.next()
        assert "next try" in said.next()
    assert not server.running
    assert server.start_again() is False


def test_someone_who_cannot_be_told_does_not_end_the_server(tmp_path: Path) -> None:
    heard = Said()

    def say(text: str) -> None:
        heard(text)
        raise BrokenPipeError("the terminal was closed")

    server = EmbeddedServer.start(tmp_path)
    with supervised(server, say):
        os.kill(server.pid, signal.SIGKILL)
        assert "was killed" in heard.next()
        assert "runs again" in heard.next()
        os.kill(server.pid, signal.SIGKILL)
        assert "was killed" in heard.next()
        assert "runs again" in heard.next()


@pytest.mark.parametrize(("failures", "wait_s"), [(0, 0.0), (1, 0.5), (2, 1.0), (4, 4.0), (50, 5.0)])
def test_the_first_start_is_at_once_and_the_next_wait_longer(failures: int, wait_s: float) -> None:
    assert pause_s(failures) == wait_s
