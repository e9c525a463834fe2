"""The bundled server: what it keeps, what it hides, and that it goes when its starter goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from optimizers.files.logs import LONG_LOG_BYTES
from tests.queue_harness import job
from workers.queue import embedded
from workers.queue.contract import Done, Failed, QueueUnavailable
from workers.queue.embedded import DataFolderInUse, DataFolderUnusable, EmbeddedServer, ServerFailed
from workers.queue.job import JobState
from workers.queue.redis.client import resolve_url
from workers.queue.redis.queue import RedisQueue


async def test_a_killed_server_restarted_on_its_folder_has_everything_acknowledged(tmp_path: Path) -> None:
    first = EmbeddedServer.start(tmp_path)
    queue = RedisQueue.open(first.url, "m")
    await queue.submit([job(i) for i in "abcd"])
    a, b, c = await queue.claim(3, 60_000, "w")
    await queue.settle([Done("a", a.token, b"result"), Failed("b", b.token, "no", retry=False)])
    os.kill(first.pid, signal.SIGKILL)
    first.stop()
    with EmbeddedServer.start(tmp_path) as second:
        # The same queue object: its clients find the server where it was, without being told.
        assert (second.url, second.url_file) == (first.url, first.url_file)
        states = [await queue.state(i) for i in "abcd"]
        assert [s and s.state for s in states] == [
            JobState.DONE,
            JobState.FAILED,
            JobState.LEASED,
            JobState.PENDING,
        ]
        assert states[0] is not None and states[0].result == b"result"
        assert await queue.settle([Done("c", c.token, b"late but mine")]) == [True]
        await queue.close()


async def test_calls_outlast_a_restart_within_their_patience(tmp_path: Path) -> None:
    server = EmbeddedServer.start(tmp_path)
    queue = RedisQueue.open(server.url, "m", patience_s=10)
    await queue.submit([job("a")])
    server.stop()
    with pytest.raises(QueueUnavailable):
        await queue.submit([job("b")], within_ms=50)
    with EmbeddedServer.start(tmp_path):
        assert (await queue.stats()).jobs == 1
        await queue.submit([job("b")])
        assert [x.id for x in await queue.claim(5, 1000, "w")] == ["a", "b"]
        await queue.close()


def test_a_long_log_of_earlier_runs_is_kept_once_and_a_new_one_begins(tmp_path: Path) -> None:
    log, former = tmp_path / "server.log", tmp_path / "server.log.1"
    with EmbeddedServer.start(tmp_path) as server:
        first = log.read_text()
        server.stop()
    with log.open("a") as file:
        file.truncate(LONG_LOG_BYTES + 1)
    with EmbeddedServer.start(tmp_path):
        assert former.stat().st_size == LONG_LOG_BYTES + 1 and former.read_bytes().startswith(first.encode())
        assert 0 < log.stat().st_size < 100_000
    with EmbeddedServer.start(tmp_path):
        assert former.stat().st_size == LONG_LOG_BYTES + 1, "a short log goes on"


def test_the_password_shows_nowhere(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path) as server:
        password = server.url.split(":")[2].split("@")[0]
        assert len(password) > 30
        assert password not in repr(server)
        command = Path(f"/proc/{server.pid}/cmdline").read_bytes()
        assert password.encode() not in command
        assert password not in (tmp_path / "server.log").read_text()
        for name in ("server.conf", "server.url"):
            assert (tmp_path / name).stat().st_mode & 0o077 == 0
        assert resolve_url(server.url_file) == server.url


async def test_nobody_without_the_password_gets_in(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path) as server:
        queue = RedisQueue.open(f"redis://:wrong@127.0.0.1:{server.port}/0", "m")
        with pytest.raises(QueueUnavailable, match=r"WRONGPASS|invalid"):
            await queue.stats()
        await queue.close()


def test_a_folder_in_use_is_refused_and_free_again_afterwards(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path), pytest.raises(DataFolderInUse, match=str(tmp_path)):
        EmbeddedServer.start(tmp_path)
    EmbeddedServer.start(tmp_path).stop()


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataFolderUnusable, match="choose another"):
        EmbeddedServer.start(tmp_path / "file" / "folder")


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").write_text("in the way")
    with pytest.raises(ServerFailed, match="log ends"):
        EmbeddedServer.start(tmp_path)
    (tmp_path / "appendonlydir").unlink()
    EmbeddedServer.start(tmp_path).stop()


STARTS_AND_IS_KILLED = """
import os, signal, sys
from workers.queue.embedded import EmbeddedServer
server = EmbeddedServer.start(sys.argv[1])
print(server.pid, flush=True)
if sys.argv[2] == "stopped":  # a stopped process acts on no signal but SIGKILL: it outlives its starter
    os.kill(server.pid, signal.SIGSTOP)
os.kill(os.getpid(), signal.SIGKILL)
"""


def orphan(folder: Path, state: str) -> int:
    """Start a server in a process that is then killed, and give the server's pid."""
    command = [sys.executable, "-c", STARTS_AND_IS_KILLED, str(folder), state]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == -signal.SIGKILL
    return int(done.stdout)


def test_it_is_gone_when_its_starter_is_killed(tmp_path: Path) -> None:
    pid = orphan(tmp_path, "running")
    # The folder's lock is the server's as long as it lives: taking it means that the server has gone.
    EmbeddedServer.start(tmp_path).stop()
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_server_that_outlives_its_starter_keeps_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = orphan(tmp_path, "stopped")
    try:
        monkeypatch.setattr(embedded, "_LOCK_TIMEOUT_S", 0.2)
        with pytest.raises(DataFolderInUse, match=str(tmp_path)):
            EmbeddedServer.start(tmp_path)
    finally:
        os.kill(pid, signal.SIGKILL)
    monkeypatch.undo()
    EmbeddedServer.start(tmp_path).stop()


def test_a_server_that_loads_for_longer_than_a_start_may_take_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, loading = embedded._answer, iter(range(30))

    def slow(port: int, password: str) -> str:
        return real(port, password) if next(loading, None) is None else "loading"

    monkeypatch.setattr(embedded, "_answer", slow)
    monkeypatch.setattr(embedded, "_START_TIMEOUT_S", 0.5)
    with EmbeddedServer.start(tmp_path) as server:
        assert server.running
