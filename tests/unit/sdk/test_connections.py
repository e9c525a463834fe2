"""The SDK's own connections, over real sockets: reused, replaced when lost, bounded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest

from router import AsyncClient, Client, ServerUnavailable
from router.sdk import connections
from router.sdk.connections import AsyncConnectionPool, ConnectionPool, _Stack
from tests.unit.sdk.harness import FakeServer

IMAGE = np.full((2, 2), 3.0)


class SocketServer(ThreadingHTTPServer):
    """A FakeServer behind a port of the loopback. It hangs up, without an answer, where that raises."""

    daemon_threads = True

    def __init__(self) -> None:
        self.fake = FakeServer()
        self.connections = 0
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one write
    server: SocketServer

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        url = f"{self.server.url}{self.path}"
        request = httpx.Request(self.command, url, headers=dict(self.headers), content=body)
        try:
            response = self.server.fake(request)
        except OSError:
            self.close_connection = True
            return
        self.send_response(response.status_code)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(response.content)

    do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[SocketServer]:
    with SocketServer() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_one_connection_serves_calls_in_turn(server: SocketServer) -> None:
    with Client(server.url) as client:
        for _ in range(5):
            assert client.infer("digits", IMAGE, "10s").output.argmax() == 3
    assert server.connections == 1


async def test_one_connection_serves_awaited_calls_in_turn(server: SocketServer) -> None:
    async with AsyncClient(server.url) as client:
        for _ in range(5):
            assert (await client.infer("digits", IMAGE, "10s")).output.argmax() == 3
    assert server.connections == 1


def test_a_connection_that_the_server_drops_is_replaced_within_the_call(server: SocketServer) -> None:
    server.fake.script.extend([ConnectionError(), ConnectionError()])
    with Client(server.url) as client:
        assert client.infer("digits", IMAGE, "10s").output.argmax() == 3
    assert len({r.headers["idempotency-key"] for r in server.fake.posts}) == 1
    assert len(server.fake.posts) == 3


async def test_calls_beside_each_other_have_connections_of_their_own(server: SocketServer) -> None:
    all_there = threading.Barrier(4)

    def meet(request: httpx.Request) -> httpx.Response:
        server.fake._lock.release()  # or the others could not come
        try:
            all_there.wait(10)
        finally:
            server.fake._lock.acquire()
        return server.fake._infer(request)

    async with AsyncClient(server.url) as client:
        await client.model("digits")
        server.fake.script.extend([meet] * 4)
        results = await asyncio.gather(*(client.infer("digits", IMAGE, "10s") for _ in range(4)))
    assert [r.output.argmax() for r in results] == [3] * 4
    assert server.connections == 4


def test_a_port_where_nobody_listens_is_an_unavailable_server() -> None:
    with Client("http://127.0.0.1:1") as client, pytest.raises(ServerUnavailable, match="refused"):
        client.infer("digits", IMAGE, "10ms")


def _request(pool_s: float) -> httpx.Request:
    times = {"connect": 1.0, "read": 1.0, "write": 1.0, "pool": pool_s}
    return httpx.Request("GET", "http://127.0.0.1:1/", extensions={"timeout": times})


async def test_more_requests_than_connections_wait_no_longer_than_their_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 0)
    with pytest.raises(httpx.PoolTimeout):
        ConnectionPool(tls=False).handle_request(_request(0.01))
    with pytest.raises(httpx.PoolTimeout):
        await AsyncConnectionPool(tls=False).handle_async_request(_request(0.01))


async def test_a_failed_request_gives_its_connection_and_its_turn_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 1)
    pool, async_pool = ConnectionPool(tls=False), AsyncConnectionPool(tls=False)
    for _ in range(3):
        with pytest.raises(httpx.ConnectError):
            pool.handle_request(_request(0.01))
        with pytest.raises(httpx.ConnectError):
            await async_pool.handle_async_request(_request(0.01))
    assert len(pool._stack.drain()) == len(async_pool._stack.drain()) == 1


def test_the_last_used_connection_is_taken_first_and_one_idle_for_long_is_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0
    monkeypatch.setattr("router.sdk.connections.time.monotonic", lambda: now_s)
    names = iter("abc")
    stack = _Stack(lambda: next(names))
    first, second = stack.take(), stack.take()
    assert stack.give(first) is None
    now_s = 120.0
    assert stack.give(second) is None
    assert stack.take() == second
    now_s = 131.0
    assert stack.give(second) == first
    assert stack.drain() == [second]
