"""Files to write: refused before the work, in one sentence that names the option."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from optimizers.files.outputs import OutputPath, why_not_writable, writing


@click.command()
@click.option("--out", type=OutputPath())
@click.option("--folder", type=OutputPath(folder=True))
@click.option("--json", type=OutputPath(allow_dash=True))
def work(out: Path | None, folder: Path | None, json: Path | None) -> None:
    click.echo("worked")


def said(*args: str) -> tuple[int, str]:
    done = CliRunner().invoke(work, args)
    return done.exit_code, done.output.strip()


def test_what_can_be_written_need_not_exist(tmp_path: Path) -> None:
    new = str(tmp_path / "a" / "b")
    assert said("--out", new, "--folder", new, "--json", "-") == (0, "worked")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("option", ["--out", "--folder"])
def test_a_file_where_a_folder_should_be_is_refused_before_the_work(option: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "x" / "y"
    assert said(option, str(path)) == (1, f"Error: {option} {path}: cannot be written: Not a directory")


def test_a_folder_that_this_user_cannot_write_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    path = tmp_path / "new" / "o.json"
    assert said("--out", str(path)) == (1, f"Error: --out {path}: cannot be written: Permission denied")


def test_a_folder_is_not_a_file_nor_a_file_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert said("--out", str(tmp_path))[0] == said("--folder", str(tmp_path / "file"))[0] == 2


def test_a_path_from_here_is_looked_up_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert why_not_writable(Path("new/o.png")) == ""
    assert why_not_writable(Path("file")) == ""
    assert why_not_writable(Path("file/o.png")) == "Not a directory"


def test_what_fails_while_writing_is_a_sentence_too(tmp_path: Path) -> None:
    path = tmp_path / "new" / "o.png"
    with (
        pytest.raises(click.ClickException, match=r"--picture .*o\.png: cannot be written: Is a directory"),
        writing("--picture", path),
    ):
        path.mkdir()
        path.write_bytes(b"")
