"""Other servers, for comparison: an environment of their own, each a process that is ended by its id."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import orjson

from workers.ports import free_port

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[2]
_FOLDER = Path("build/bench/peers")
_READY_WITHIN_S = 90.0
MAX_BATCH, BATCH_WAIT_S = 64, 0.002


class PeerError(RuntimeError):
    """A peer that cannot be installed or started; the message says where its log is."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A running peer: where one row is posted to, and its JSON body."""

    name: str
    url: str
    body: bytes


def environment() -> Path:
    """The peers' Python, installed by ``requirements.txt`` the first time and when that changes."""
    pins = _HERE / "requirements.txt"
    digest = hashlib.sha256(pins.read_bytes()).hexdigest()[:12]
    folder = (_FOLDER / f"venv-{digest}").absolute()
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        print(f"installing the peers into {folder} (once)", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        command = [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-r",
            str(pins),
        ]
        finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if finished.returncode:
            raise PeerError(f"the peers cannot be installed:\n{finished.stdout[-2_000:]}")
        done.touch()
    return python


@contextmanager
def litserve(folder: Path, row: list[float]) -> Iterator[Peer]:
    """LitServe with the artifact in ``folder``."""
    port = free_port()
    command = (str(environment()), "-m", "tests.benchmarks.peers.serve_litserve", str(folder), str(port))
    with _process("litserve", command, f"http://127.0.0.1:{port}/health"):
        yield Peer("LitServe", f"http://127.0.0.1:{port}/predict", orjson.dumps({"x": row}))


@contextmanager
def mlserver(folder: Path, body: bytes) -> Iterator[Peer]:
    """MLServer with the artifact in ``folder``; ``body`` is the protocol's JSON."""
    port = free_port()
    home = (_FOLDER / "mlserver").absolute()
    home.mkdir(parents=True, exist_ok=True)
    # No worker processes: for a model this small the way to them costs more than the model.
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "parallel_workers": 0,
        "debug": False,
    }
    model = {
        "name": "mlp",
        "implementation": "tests.benchmarks.peers.serve_mlserver.Mlp",
        "parameters": {"uri": str(folder)},
        "max_batch_size": MAX_BATCH,
        "max_batch_time": BATCH_WAIT_S,
    }
    (home / "settings.json").write_bytes(orjson.dumps(settings))
    (home / "model-settings.json").write_bytes(orjson.dumps(model))
    command = (str(environment()), "-m", "mlserver.cli.main", "start", str(home))
    with _process("mlserver", command, f"http://127.0.0.1:{port}/v2/models/mlp/ready"):
        yield Peer("MLServer", f"http://127.0.0.1:{port}/v2/models/mlp/infer", body)


@contextmanager
def _process(name: str, command: tuple[str, ...], ready_url: str) -> Iterator[None]:
    log = _FOLDER / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    one_thread = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **one_thread},
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            start_new_session=True,
        )
    try:
        _wait_ready(name, process, ready_url, log)
        yield
    finally:
        _end(process)


def _wait_ready(name: str, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise PeerError(f"{name} did not start; its log is {log}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started."""
    import psutil

    try:
        leader = psutil.Process(process.pid)
        family = [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.terminate()
    for member in psutil.wait_procs(family, timeout=10)[1]:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


__all__ = ["Peer", "PeerError", "environment", "litserve", "mlserver"]
