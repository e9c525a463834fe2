"""Where a server keeps what must outlive it: below the current folder, or in the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from router.cli.main import main
from router.serving import state

UNWRITABLE = Path("/proc")  # for root as well


@pytest.fixture(autouse=True)
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder for such things, of this test alone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "states"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "states"


def test_it_is_below_the_current_folder_outside_of_what_is_built(states: Path) -> None:
    assert state.find() == state.make() == state.HERE
    assert state.HERE.is_dir() and "build" not in state.HERE.parts
    assert not states.exists()


def test_looking_for_it_makes_nothing(tmp_path: Path) -> None:
    state.find()
    assert not any((tmp_path / "here").iterdir())


def test_where_the_current_folder_cannot_be_written_it_is_the_users(
    states: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(UNWRITABLE)
    made = state.make()
    assert made.is_dir() and made.parent == states / "hybrid-router" and made.name.startswith("proc-")
    assert state.find() == made
    assert made.stat().st_mode & 0o077 == 0


def test_two_folders_of_one_name_have_places_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = []
    for parent in ("a", "b"):
        (tmp_path / parent / "same").mkdir(parents=True)
        (tmp_path / parent / "same" / "var").write_text("in the way")
        monkeypatch.chdir(tmp_path / parent / "same")
        places.append(state.make())
    assert places[0] != places[1]


def test_data_at_the_users_stays_in_use_when_the_folder_can_be_written_later(
    tmp_path: Path,
) -> None:
    (tmp_path / "here/var").write_text("in the way")
    at_the_users = state.make()
    (tmp_path / "here/var").unlink()
    assert state.find() == state.make() == at_the_users


def test_nowhere_is_said_with_both_places_and_their_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.chdir(UNWRITABLE)
    with pytest.raises(state.StateError, match=r"/proc/var/hybrid-router .*Not a directory.*XDG_STATE_HOME"):
        state.make()


def test_a_folder_that_was_deleted_meanwhile_is_named_as_the_reason(tmp_path: Path) -> None:
    (tmp_path / "here").rmdir()
    with pytest.raises(state.StateError, match="does not exist any more"):
        state.make()


def test_the_demo_that_cannot_write_here_says_so_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(UNWRITABLE)
    said = CliRunner().invoke(main, ["demo"])
    assert said.exit_code == 1
    assert said.output.startswith("Error: the log build/demo/demo.log cannot be written")
    assert len(said.output.splitlines()) == 1
