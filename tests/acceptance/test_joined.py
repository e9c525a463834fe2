"""`serve --address` on a cluster that dies under it: Ctrl-C still ends it, and a second one at once."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import psutil
import pytest

from router.serving import ray_start
from tests.acceptance.conftest import start
from workers.ports import free_port


class Head:
    """A Ray cluster as `ray start --head` leaves it."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="ray-")
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        options = {
            "--port": port,
            "--num-cpus": 4,
            "--include-dashboard": "false",
            "--temp-dir": self.folder,
            # What the system gives: the usual range holds the port above.
            "--min-worker-port": 0,
            "--max-worker-port": 0,
            "--ray-client-server-port": free_port(),
            "--dashboard-agent-listen-port": free_port(),
        }
        words = [str(word) for option in options.items() for word in option]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *words]
        with mock.patch.dict(os.environ, {"RAY_AUTH_MODE": "token"}):
            ray_start.prepare(Path(self.folder))
            subprocess.run(command, check=True, capture_output=True, timeout=120)

    def kill(self) -> None:
        """As when its machine is gone: nothing of it ends in order."""
        for process in psutil.process_iter(["cmdline"]):
            if any(self.folder in word for word in process.info["cmdline"] or ()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


@pytest.fixture
def head() -> Iterator[Head]:
    started = Head()
    yield started
    started.kill()
    shutil.rmtree(started.folder, ignore_errors=True)


@pytest.mark.parametrize("again", [False, True])
def test_ctrl_c_ends_it_when_its_cluster_has_died(
    head: Head, policy: Path, tmp_path: Path, again: bool
) -> None:
    served = start(policy, tmp_path, "--data", "queue", "--address", head.address)
    assert "ready in" in served.said, served.said
    queue_servers = [p for p in served.processes() if "valkey" in p.name()]
    head.kill()
    served.process.send_signal(signal.SIGINT)
    assert served.process.stdout
    assert "Ctrl-C again ends it at once" in served.process.stdout.readline()
    if again:
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(5) == -signal.SIGINT  # which a shell shows as 130
    else:
        assert served.process.wait(50) == 1
        assert f"the Ray at {head.address} does not answer any more" in served.process.stdout.read()
    assert queue_servers
    assert not psutil.wait_procs(queue_servers, timeout=15)[1]
