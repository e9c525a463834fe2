"""One real server for all acceptance tests: `hybrid-router serve` as a user starts it, on real artifacts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from router import Client
from tests.support import every_datatype
from workers.ports import free_port

POLICY = """
models:
  digits:
    artifacts: {artifacts}
    online: {{variants: [float32, int8, tree], replicas: 1, max_batch: 64}}
    batch: {{variant: int8, workers: 1, max_batch: 256, lease: 3s}}
routes:
  - {{name: interactive, when: {{budget: "<= 2s"}}, to: online, quality: {{max_drop: 0.02}}}}
  - {{name: bulk, when: {{budget: "> 30s"}}, to: batch}}
  - {{name: flexible, to: auto}}
defaults: {{budget: 1s, hold: 15s, results: {{keep: 1h}}}}
limits: {{body: 1MiB, rows: 1000}}
"""


@dataclass(frozen=True)
class Served:
    """A running `serve` process and what it said."""

    process: subprocess.Popen[str]
    url: str
    said: str

    def told(self, name: str) -> str:
        """The value of a line such as ``dashboard  http://...``."""
        found = re.search(rf"^\s*{name}\s+(\S.*)$", self.said, re.MULTILINE)
        assert found, self.said
        return found[1]

    def processes(self) -> list[psutil.Process]:
        """Everything that it started, at any depth."""
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture(scope="session")
def policy(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits beside a model with every datatype of the protocol."""
    folder = tmp_path_factory.mktemp("policy")
    every_datatype.write(folder / "every")
    path = folder / "digits.yaml"
    every = f"  every: {{artifacts: {folder / 'every'}, online: {{variants: [plain], max_batch: 64}}}}\n"
    path.write_text(POLICY.format(artifacts=artifacts).replace("routes:", every + "routes:"))
    return path


def start(policy: Path, folder: Path, *options: str, wait: bool = True) -> Served:
    """`hybrid-router serve` in ``folder``, read up to its word that it is ready (or its end)."""
    port, grpc_port = free_port(), free_port()
    command = [sys.executable, "-m", "router.cli.main", "serve", str(policy), "--port", str(port)]
    command += ["--grpc-port", str(grpc_port), *options]
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    said = ""
    assert process.stdout
    for line in process.stdout if wait else ():
        said += line
        if line.startswith("ready in"):
            break
    return Served(process, f"http://127.0.0.1:{port}", said)


def stop(served: Served, number: int = signal.SIGTERM) -> None:
    """End it as a user does, and see that nothing of it is left."""
    started = served.processes() if served.process.poll() is None else []
    served.process.send_signal(number)
    served.process.wait(60)
    _, alive = psutil.wait_procs(started, timeout=15)
    assert not alive, f"left running: {alive}"


@pytest.fixture(scope="session")
def served(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    running = start(policy, tmp_path_factory.mktemp("serve"), "--data", "queue")
    assert "ready in" in running.said, running.said
    yield running
    stop(running)


@pytest.fixture(scope="session")
def client(served: Served) -> Iterator[Client]:
    with Client(served.url) as connected:
        yield connected
