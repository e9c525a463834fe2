"""The SDK and the client's commands where Python lacks what only POSIX has: a real process, a real server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest

from router.bulk.disk import AppendFile, Disk
from router.bulk.store import Paths
from tests.support.loopback import listening
from tests.unit.bulk.harness import BulkServer, order_of, submit, table
from tests.unit.sdk.harness import FakeServer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def run(*words: str | Path, fails: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.support.without_posix", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == fails, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def bulk() -> Iterator[str]:
    """The URL of a server that keeps jobs."""
    with listening(BulkServer()) as url:
        yield url


@pytest.mark.parametrize("name", ["", "infer", "submit", "result", "status", "key", "completion"])
def test_every_command_of_the_client_shows_its_help(name: str) -> None:
    assert "Usage: hybrid-router" in run(*name.split(), "--help").stdout


def test_infer_and_status_ask_the_server() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={}) if request.url.path.endswith("/stats") else server(request)

    server = FakeServer()
    with listening(handle) as url:
        said = run("infer", "digits", "[[3, 3], [3, 3]]", "--json", "--url", url).stdout
        assert orjson.loads(said)["outputs"]["scores"][0][3] == 1
        assert orjson.loads(run("status", "--json", "--url", url).stdout)["ready"] is True


def test_submit_writes_results_and_leaves_nothing_else(bulk: str, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", table(40))
    for name in ("out.jsonl", "out.parquet"):
        run("submit", "m", tmp_path / "in.npy", "--budget", "1h", "--out", tmp_path / name, "--url", bulk)
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 40
    assert names_in(tmp_path) == {"in.npy", "out.jsonl", "out.parquet"}


def test_submit_is_kept_from_results_that_another_process_writes(bulk: str, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", table(40))
    ledger = Paths(tmp_path / "out.jsonl").ledger
    held = "import fcntl, os, sys; f = open(sys.argv[1], 'a+'); fcntl.lockf(f, fcntl.LOCK_EX, 1, 1 << 40); "
    with subprocess.Popen(
        [sys.executable, "-c", held + "print(flush=True); sys.stdin.read()", str(ledger)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdout.readline()
        words = ("submit", "m", tmp_path / "in.npy", "--budget", "1h", "--out", tmp_path / "out.jsonl")
        done = run(*words, "--url", bulk, fails=2)
        other.stdin.close()
    assert "another process is writing" in done.stderr


def test_submit_says_what_it_needs_where_no_file_can_be_locked(bulk: str, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", table(40))
    words = ("submit", "m", tmp_path / "in.npy", "--budget", "1h", "--out", tmp_path / "out.jsonl")
    done = run("--no-locks", *words, "--url", bulk, fails=1)
    assert "neither fcntl (Linux, macOS) nor msvcrt (Windows)" in done.stderr


@pytest.mark.parametrize("command", [("serve", "configs/digits.yaml"), ("demo",)], ids=" ".join)
def test_what_starts_the_server_says_that_it_runs_on_linux(command: tuple[str, ...]) -> None:
    assert "the server runs on Linux" in run(*command, fails=1).stderr


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class KeepsWhatIsOpen(Disk):
    """As on Windows: no file is removed or replaced while this process has it open."""

    def __init__(self) -> None:
        self.opened: list[AppendFile] = []

    def open(self, path: Path) -> AppendFile:
        self.opened.append(super().open(path))
        return self.opened[-1]

    def _check(self, path: Path) -> None:
        if path.exists() and any(str(path) == link for link in _open_files()):
            raise PermissionError(13, "used by another process", str(path))

    def remove(self, path: Path) -> None:
        self._check(path)
        super().remove(path)

    def replace(self, source: Path, target: Path) -> None:
        self._check(source)
        self._check(target)
        super().replace(source, target)


def _open_files() -> list[str]:
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(entry.readlink()))
        except OSError:  # the one that lists them
            continue
    return links


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.npy", "out.parquet"])
@pytest.mark.parametrize("restart", [False, True])
async def test_a_run_ends_where_no_open_file_can_be_removed(tmp_path: Path, name: str, restart: bool) -> None:
    np.save(tmp_path / "in.npy", table(20))
    order = order_of(tmp_path / "in.npy", tmp_path / name, outputs=("double",))
    if restart:
        (tmp_path / name).write_bytes(b"old")
    disk = KeepsWhatIsOpen()
    tally = await submit(BulkServer(), order, disk=disk, restart=restart)
    assert tally.rows == 20
    assert names_in(tmp_path) == {"in.npy", name}
    assert len(disk.opened) == 3
