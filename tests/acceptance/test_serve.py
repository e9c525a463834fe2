"""The `serve` command: what it says, how it fails, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from router import Client
from tests.acceptance.conftest import POLICY, Served, start, stop
from workers.queue.embedded import EmbeddedServer


def test_it_says_in_plain_lines_what_runs_where(served: Served) -> None:
    assert served.told("endpoint") == served.url
    assert served.told("dashboard").startswith("http://127.0.0.1:")
    assert "online x1 (float32, int8, tree), batch x1 (int8)" in served.told("model digits")
    assert served.told("log").endswith("serve.log")


def test_it_listens_on_loopback_only(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", int(port)), 2):
        pass
    with socket.create_connection((host, int(port)), 2) as open_socket:
        assert open_socket.getpeername()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda text: text.replace("max_drop", "max_dorp"), "did you mean 'max_drop'?"),
        (lambda text: text.replace("variant: int8", "variant: int3"), "variant 'int3'"),
        (lambda text: text.replace("models:", "models"), "not valid YAML"),
        (lambda text: text + "redis: {url: 'redis://127.0.0.1:1'}\n", "redis.url: the server cannot be"),
    ],
)  # fmt: skip
def test_a_policy_that_cannot_be_served_is_refused_in_one_message(
    artifacts: Path, tmp_path: Path, broken: object, says: str
) -> None:
    assert callable(broken)
    path = tmp_path / "broken.yaml"
    path.write_text(broken(POLICY.format(artifacts=artifacts)))
    served = start(path, tmp_path)
    assert served.process.wait(60) == 2
    assert f"{path}" in served.said
    assert says in served.said
    assert "Traceback" not in served.said


def test_a_port_in_use_is_refused_in_one_message(policy: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        served = start(policy, tmp_path, "--port", str(port))
        assert served.process.wait(60) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in served.said
    assert "Traceback" not in served.said


def test_a_data_folder_in_use_is_refused_in_one_message(policy: Path, tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path / "queue"):
        refused = start(policy, tmp_path, "--data", "queue")
        assert refused.process.wait(60) == 1
    assert refused.said.startswith(f"hybrid-router: data folder {tmp_path / 'queue'} is in use")
    assert len(refused.said.splitlines()) == 1


def test_the_log_of_a_run_that_failed_survives_the_next(tmp_path: Path) -> None:
    log = tmp_path / "var/hybrid-router/serve.log"
    for number in (1, 2):
        assert start(tmp_path / f"{number}.yaml", tmp_path).process.wait(60) == 2
    text = log.read_text()
    assert "1.yaml" in text and "2.yaml" in text
    with log.open("a") as file:
        file.truncate(9 << 20)
    assert start(tmp_path / "3.yaml", tmp_path).process.wait(60) == 2
    assert "3.yaml" in log.read_text() and "1.yaml" not in log.read_text()
    assert log.with_name("serve.log.1").stat().st_size == 9 << 20


def test_where_nothing_can_be_kept_it_says_so_in_one_message(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    running = start(policy, Path("/proc"))
    assert running.process.wait(60) == 1
    assert "start in a folder that you can write, or set XDG_STATE_HOME" in running.said
    assert len(running.said.splitlines()) == 1


class Proxy:
    """Where the environment's proxy is said to be: it keeps what it is asked, and answers nothing."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def asked(self) -> list[str]:
        """The first line of each request."""
        lines = []
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = self.socket.accept()
                with connection:
                    connection.settimeout(1)
                    with contextlib.suppress(TimeoutError):
                        lines.append(connection.recv(4096).decode().partition("\r\n")[0])
        return lines


def await_line(served: Served, wanted: str) -> None:
    """Until the process has said it."""
    said = threading.Event()

    def read() -> None:
        for line in served.process.stdout or ():
            if wanted in line:
                said.set()
                return

    threading.Thread(target=read, daemon=True).start()
    assert said.wait(30), f"not said: {wanted}"


def test_a_killed_queue_server_is_back_at_once_and_everyone_is_told(served: Served, client: Client) -> None:
    (server,) = (p for p in served.processes() if p.name().startswith("valkey"))
    image = np.zeros((1, 1, 8, 8), np.float32)
    job = client.submit("digits", image, budget="10min")
    job.result()
    server.kill()
    await_line(served, "the queue server was killed by SIGKILL")
    await_line(served, "runs again on port")
    assert job.result().outputs["label"].shape == (1,)  # accepted and answered before: nothing is lost
    assert client.submit("digits", image, budget="10min").result().variant == "int8"
    until = time.monotonic() + 20
    while not client.stats("digits").get("queue", {}).get("server_restarts"):
        assert time.monotonic() < until, client.stats("digits")
        time.sleep(0.1)
    said = subprocess.run(
        [sys.executable, "-m", "router.cli.main", "status", "--url", served.url],
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert "its server was restarted once" in said
    while "hybrid_queue_server_restarts_total" not in (
        text := httpx.get(served.told("metrics"), timeout=20).text
    ):
        assert time.monotonic() < until + 30, text
        time.sleep(0.5)


@dataclass(frozen=True)
class Second:
    """A server beside the first one, and what it was given."""

    served: Served
    #: What the environment says of proxies.
    environment: dict[str, str]
    proxy: Proxy
    #: Where it may write; its working directory it may not.
    state: Path


@pytest.fixture(scope="module")
def second(served: Served, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Second]:
    proxy, state = Proxy(), tmp_path_factory.mktemp("state")
    names = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
    proxies = {name: proxy.url for lower in names for name in (lower, lower.upper())}
    with proxy.socket:
        with pytest.MonkeyPatch.context() as environment:
            for name, value in {**proxies, "XDG_STATE_HOME": str(state)}.items():
                environment.setenv(name, value)
            environment.delenv("no_proxy", raising=False)
            environment.delenv("NO_PROXY", raising=False)
            running = start(policy, Path("/proc"))
            environment_of_it = dict(os.environ)
        yield Second(running, environment_of_it, proxy, state)
        if running.process.poll() is None:
            stop(running)


def test_a_second_server_runs_beside_the_first(served: Served, second: Second) -> None:
    assert "ready in" in second.served.said, second.served.said
    assert second.served.url != served.url
    assert httpx.get(f"{served.url}/v2/health/ready", timeout=20).status_code == 200


def test_it_serves_from_a_folder_that_cannot_be_written(second: Second) -> None:
    (kept,) = (second.state / "hybrid-router").iterdir()
    assert f"data in {kept}/queue" in second.served.told("queue")
    assert second.served.told("log") == f"{kept}/serve.log"


def test_it_ends_on_ctrl_c_leaves_no_process_and_never_asked_the_proxy_for_this_machine(
    second: Second,
) -> None:
    command = [sys.executable, "-m", "router.cli.main", "status", "--url", second.served.url]
    status = subprocess.run(command, env=second.environment, capture_output=True, text=True, timeout=60)
    assert "ready" in status.stdout
    stop(second.served, signal.SIGINT)
    assert second.served.process.returncode == 0
    # Ray asks by itself whether it runs in a cloud: that is another machine.
    addresses = (address.address for some in psutil.net_if_addrs().values() for address in some)
    here = {*addresses, "localhost"}
    assert not [line for line in second.proxy.asked() for name in here if name in line]
