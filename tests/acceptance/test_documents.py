"""Every command of the documents that asks a server runs against a real one, and so does their Python."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import router
from optimizers.examples.digits import test_split as real_images
from router import Client
from tests.acceptance.conftest import Served
from tests.support.documents import DOCUMENTS, ROOT, Command, blocks, commands, run, write_inputs

URL = "http://127.0.0.1:8000"
ASKING = [d for d in DOCUMENTS if any(c.asks_server and not c.not_run for c in commands(d))]


@pytest.fixture
def folder(artifacts: Path, tmp_path: Path) -> Path:
    images, labels = real_images()
    write_inputs(tmp_path, images[labels == 3][:4], artifacts)
    return tmp_path


@pytest.fixture(scope="module")
def job(served: Served) -> Iterator[str]:
    """The id of a queued request, for commands that need one."""
    images, _ = real_images()
    with Client(served.url) as client:
        yield client.submit("digits", images[:2], budget="10min").id


def shell(command: str) -> str:
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("document", ASKING, ids=lambda path: path.name)
def test_the_commands_run_in_their_order(
    document: Path, served: Served, folder: Path, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    asked = [command for command in commands(document) if command.asks_server and not command.not_run]
    for command in asked:
        text = command.text.replace(URL, served.url).replace("50ms", "1s")  # 50 ms are for an idle machine
        text = re.sub(r"\bID\b", job, text)
        if command.text.startswith("curl"):
            answer = shell(text)
            assert '"error"' not in answer, f"{command}\n{answer}"
            continue
        if "dead" in text.split()[:2]:
            text += f" --data {psutil.Process(served.process.pid).cwd()}/queue"
        result = run(text, HYBRID_ROUTER_URL=served.url)
        assert result.exit_code == 0, f"{command}\n{result.output}"
    check_files(asked, folder)


def check_files(asked: list[Command], folder: Path) -> None:
    """Whatever a command was to write is there."""
    for command in asked:
        for target in re.findall(r"(?:--out|--json|>) (\S+\.\w+)", command.text):
            assert (folder / target).stat().st_size > 0, f"{command} wrote no {target}"


PYTHON = [
    (document, block)
    for document in DOCUMENTS
    for block in blocks(document, "python")
    if "router" in block or "triton" in block
]


@pytest.mark.parametrize(("document", "block"), PYTHON, ids=lambda value: getattr(value, "name", ""))
def test_the_python_runs(
    document: Path, block: str, served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = real_images()
    threes = images[labels == 3]
    scope: dict[str, Any] = {"image": threes[0], "images": threes[:2], "many_images": threes[:5]}
    scope |= {name: getattr(router, name) for name in router.__all__}
    # The budget is for a machine that does nothing else.
    source = (
        block.replace(URL, served.url)
        .replace('"50ms"', '"1s"')
        .replace("127.0.0.1:8001", served.told("grpc"))
    )
    exec(source, scope)
    scope["client"].close()
    printed = capsys.readouterr().out
    assert re.match(r"\[\d\] ", printed) if document.parent == ROOT else printed.startswith("[")
