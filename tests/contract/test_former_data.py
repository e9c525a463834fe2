"""Where the queue's data is. What an earlier version kept elsewhere is taken over, never by two servers."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from router.cli.main import main
from router.serving import state
from tests.queue_harness import job
from workers.queue import embedded
from workers.queue.embedded import DataFolderInUse, EmbeddedServer
from workers.queue.redis.queue import RedisQueue

FORMER, NOW = Path("build/queue"), state.HERE / "queue"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "states"))
    return tmp_path


def fill(folder: Path, id: str) -> None:
    async def submit(url: str) -> None:
        queue = RedisQueue.open(url, "m")
        await queue.submit([job(id)])
        await queue.close()

    with EmbeddedServer.start(folder) as server:
        asyncio.run(submit(server.url))


def held(folder: Path) -> list[str]:
    async def ids(url: str) -> list[str]:
        queue = RedisQueue.open(url, "m")
        waiting = await queue.peek(10)
        await queue.close()
        return [one.id for one in waiting]

    with EmbeddedServer.start(folder) as server:
        return asyncio.run(ids(server.url))


def test_accepted_jobs_move_along_and_their_new_place_is_said() -> None:
    fill(FORMER, "a")
    said: list[str] = []
    assert state.queue_data(said.append) == NOW
    assert said == [f"the queue's data was moved from {FORMER} to {NOW}"]
    assert not FORMER.exists()
    assert held(NOW) == ["a"]
    assert state.queue_data(said.append) == NOW and len(said) == 1


def test_commands_beside_the_server_find_its_data_without_being_told_where(here: Path) -> None:
    (here / "policy.yaml").write_text("models: {m: {artifacts: a, batch: {variant: v}}}")
    with EmbeddedServer.start(state.queue_data(print)):
        said = CliRunner().invoke(main, ["dead", "list", "policy.yaml", "m"])
    assert (said.exit_code, said.output) == (0, "model 'm' has no dead letters\n")


def test_data_that_a_server_runs_on_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_LOCK_TIMEOUT_S", 0.1)
    with EmbeddedServer.start(FORMER):
        with pytest.raises(DataFolderInUse, match=str(FORMER)):
            state.queue_data(print)
        assert FORMER.exists() and not NOW.exists()


def test_where_both_hold_jobs_neither_is_touched_and_the_other_is_named() -> None:
    fill(FORMER, "old")
    fill(NOW, "new")
    said: list[str] = []
    assert state.queue_data(said.append) == NOW
    assert f"--data {FORMER}" in said[0]
    assert held(NOW) == ["new"] and held(FORMER) == ["old"]


def test_data_that_cannot_be_moved_is_used_where_it_is() -> None:
    fill(FORMER, "a")
    NOW.mkdir(parents=True)
    (NOW / "something").write_text("in the way")
    said: list[str] = []
    assert state.queue_data(said.append) == FORMER
    assert f"stays in {FORMER}" in said[0]
    assert held(FORMER) == ["a"]


def test_make_clean_deletes_what_is_built_and_no_job(here: Path) -> None:
    fill(FORMER, "former")
    fill(NOW, "now")
    for folder in ("build/demo", "artifacts/digits"):
        (here / folder).mkdir(parents=True)
    makefile = Path(__file__).parents[2] / "Makefile"
    done = subprocess.run(["make", "-f", str(makefile), "clean"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "kept build/queue" in done.stdout
    assert [path.name for path in Path("build").iterdir()] == ["queue"] and not Path("artifacts").exists()
    assert held(FORMER) == ["former"] and held(NOW) == ["now"]
