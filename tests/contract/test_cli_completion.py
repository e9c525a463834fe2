"""Tab completion: commands, options, models, variants, outputs and files; silence where nobody answers."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.contract.cli_harness import Cli, Server, against
from tests.unit.sdk.harness import FakeServer, problem

Complete = Callable[[str], list[str]]


@pytest.fixture
def completed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], Complete]:
    """Give it a server; get what bash would offer for a line's last word."""

    def of(server: Server) -> Complete:
        invoke: Cli = against(monkeypatch, server)

        def offered(line: str) -> list[str]:
            words = line.split(" ")
            env = {
                "_HYBRID_ROUTER_COMPLETE": "bash_complete",
                "COMP_WORDS": line,
                "COMP_CWORD": str(len(words) - 1),
            }
            done = invoke(env=env)
            assert done.stderr == ""
            return [row.partition(",")[2] for row in done.stdout.split()]

        return offered

    return of


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("hybrid-router in", ["infer"]),
        ("hybrid-router policy ", ["check", "explain", "schema"]),
        ("hybrid-router infer ", ["digits"]),
        ("hybrid-router infer x", []),
        ("hybrid-router submit d", ["digits"]),
        ("hybrid-router infer digits --variant ", ["float32", "int8"]),
        ("hybrid-router infer digits --variant i", ["int8"]),
        ("hybrid-router submit digits --output s", ["scores"]),
        ("hybrid-router infer --variant ", []),
        ("hybrid-router infer nobody --variant ", []),
        ("hybrid-router infer digits --bud", ["--budget"]),
        ("hybrid-router completion ", ["bash", "zsh", "fish"]),
    ],
)
def test_what_can_stand_next_is_offered(
    completed: Callable[[Server], Complete], line: str, offers: list[str]
) -> None:
    found = completed(FakeServer())(line)
    assert set(offers) <= set(found) if line.endswith("policy ") else found == offers


@pytest.mark.parametrize("answer", [httpx.ConnectError("refused"), problem(401), problem(503)])
def test_a_server_that_does_not_answer_offers_nothing_and_prints_nothing(
    completed: Callable[[Server], Complete], answer: httpx.Response | Exception
) -> None:
    asked: list[httpx.Request] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert completed(refuse)("hybrid-router infer d") == []
    assert len(asked) == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_asks_this_program(monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    done = against(monkeypatch, FakeServer())("completion", shell)
    assert done.exit_code == 0
    assert f"_HYBRID_ROUTER_COMPLETE={shell}_complete" in done.stdout
    assert "hybrid-router" in done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_completes_a_command_with_the_script(tmp_path: Path) -> None:
    program = tmp_path / "hybrid-router"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m router.cli.main "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    script = (
        'eval "$(hybrid-router completion bash)"\n'
        "COMP_WORDS=(hybrid-router sub); COMP_CWORD=1\n"
        "_hybrid_router_completion hybrid-router\n"
        'echo "${COMPREPLY[@]}"; complete -p hybrid-router\n'
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PATH": path},
    )
    offered, registered = done.stdout.splitlines()
    assert offered == "submit", done.stderr
    assert "_hybrid_router_completion hybrid-router" in registered
