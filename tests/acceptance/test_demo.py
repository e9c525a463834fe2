"""The demo as a user runs it, short: it ends well only if every answer was right and none was lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
    assert run.stdout.startswith("demo: serves a model") and "takes about" in run.stdout.splitlines()[0]
    assert "nothing lost, nothing answered twice, every answer is its variant's" in run.stdout
    figures = json.loads((tmp_path / "build/demo/run.json").read_text())
    assert figures["problems"] == []
    assert figures["interactive"]["requests"] > 40
    assert figures["interactive"]["untrue_to_variant"] == 0
    assert figures["bulk"]["rows"] == figures["bulk"]["sent"] > 0
    assert (tmp_path / "build/demo/run.png").read_bytes().startswith(b"\x89PNG")
