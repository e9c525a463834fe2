"""The demo as a user runs it, short: it ends well only if every answer was right and none was lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from workers.ports import free_port


def command(policy: Path, *options: str) -> list[str]:
    port = str(free_port())
    base = [sys.executable, "-m", "router.cli.main", "demo", "--policy", str(policy), "--port", port]
    return [*base, "--seconds", "4", "--rate", "20", *options]


def test_it_checks_every_answer_and_saves_picture_and_figures(policy: Path, tmp_path: Path) -> None:
    trace = tmp_path / "arrivals.csv"
    trace.write_text("timestamp\n" + "\n".join(f"{n * 0.05:.2f}" for n in range(60)))
    run = subprocess.run(
        command(policy, "--trace", str(trace)), cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "nothing lost, nothing answered twice, every answer is its variant's" in run.stdout
    figures = json.loads((tmp_path / "build/demo/run.json").read_text())
    assert figures["problems"] == []
    assert figures["interactive"]["requests"] > 40
    assert figures["interactive"]["untrue_to_variant"] == 0
    assert figures["bulk"]["rows"] == figures["bulk"]["sent"] > 0
    assert (tmp_path / "build/demo/run.png").read_bytes().startswith(b"\x89PNG")


def test_keep_leaves_it_running_with_lines_that_work_when_pasted(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Also where a proxy is set, which must not be asked for this machine: nothing listens there.
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    kept = subprocess.Popen(
        command(policy, "--keep"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert kept.stdout
    said = []
    for line in kept.stdout:
        said.append(line.strip())
        if line.startswith("Ctrl-C"):
            break
    lines = [line for line in said if line.startswith("curl ")]
    assert len(lines) == 3, said
    answers = [
        subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=60).stdout
        for line in lines
    ]
    assert json.loads(answers[0])["outputs"][0]["name"] == "label"
    assert "202 Accepted" in answers[1]
    assert len(json.loads(answers[2])["outputs"][0]["data"]) == 3
    endpoint = next(line.split()[-1] for line in said if line.startswith("endpoint"))
    assert httpx.get(f"{endpoint}/v2/health/ready", trust_env=False).status_code == 200
    started = psutil.Process(kept.pid).children(recursive=True)
    kept.send_signal(signal.SIGINT)
    assert kept.wait(60) == 0
    assert not psutil.wait_procs(started, timeout=15)[1]
