"""A client that was used before a fork: real sockets, real processes, and nothing shared between them."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from router import Client, HybridRouterError
from router.sdk import fork
from tests.support.forked_client import BEFORE, CALLS, CHILDREN
from tests.support.loopback import listening
from tests.unit.sdk.harness import FakeServer, pending

ROOT = Path(__file__).parents[2]


def run(what: str, url: str) -> None:
    command = [sys.executable, "-W", "error::ResourceWarning", "-m", "tests.support.forked_client", url, what]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("face", ["blocking", "awaited"])
def test_a_client_used_before_a_fork_gives_each_process_its_own_answers(face: str) -> None:
    server = FakeServer()
    with listening(server) as url:
        run(face, url)
    keys = [post.headers["idempotency-key"] for post in server.posts]
    assert len(keys) == len(set(keys)) == BEFORE + (CHILDREN + 1) * CALLS + 1


def test_a_forked_child_does_not_end_the_map_of_its_parent() -> None:
    server, released = FakeServer(queue=True), threading.Event()
    # Requests arrive in any order: the first image is all zeros, whichever id it is given.
    first_image_at: set[str] = set()

    def handle(request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if request.method == "POST" and request.content.endswith(bytes(16)):
            response = server(request)
            first_image_at.add(f"/v2/requests/{response.json()['id']}")
            return response
        if path.endswith("/stats"):
            released.set()
            return httpx.Response(200, json={})
        later = request.method == "GET" and path.startswith("/v2/requests/") and path not in first_image_at
        if later and not released.wait(1.0):
            return pending(path.rpartition("/")[2])
        return server(request)

    with listening(handle) as url:
        run("map_of_the_parent", url)
    assert released.is_set()
    assert server.cancelled == []
    assert len(server.posts) == 6


def test_a_forked_child_has_what_is_left_of_a_shared_deadline() -> None:
    server = FakeServer()
    with listening(server) as url:
        run("shared_deadline", url)
    budgets = [float(post.headers.get("latency-budget-ms", "inf")) for post in server.posts]
    assert len(budgets) == 4
    assert budgets[0] <= 10_000 < budgets[2] <= budgets[1] <= 20_000
    assert budgets[3] == float("inf")


def test_a_transport_that_was_made_before_a_fork_is_refused_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client("http://router.test", transport=httpx.MockTransport(FakeServer()))
    assert client.ready()
    monkeypatch.setattr(fork, "_generation", fork.generation() + 1)
    with pytest.raises(HybridRouterError, match=r"made before a fork.*make a new client"):
        client.models()
    client.close()
