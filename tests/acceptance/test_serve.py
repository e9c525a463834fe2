"""The `serve` command: what it says, how it fails, and that it leaves nothing behind."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from tests.acceptance.conftest import POLICY, Served, start, stop


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_server_runs_beside_the_first_and_leaves_no_process(
    served: Served, policy: Path, tmp_path: Path, number: int
) -> None:
    second = start(policy, tmp_path, "--data", "queue")
    assert "ready in" in second.said, second.said
    assert second.url != served.url
    stop(second, number)
    assert second.process.returncode == 0
