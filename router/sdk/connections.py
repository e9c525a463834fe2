"""Connections of the SDK: a pool that takes the one used last, as httpx transports.

httpx's own pool looks at every connection for every connection whenever a request ends: at 64 in flight
it costs more than the requests. Taking the connection
that was used last costs the same however many there are.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import httpx

from router.sdk.fork import PerProcess

Connection = TypeVar("Connection")

#: Requests in flight at once; more wait for their turn within their time.
MAX_CONNECTIONS = 256
#: How long a connection is kept that nobody uses.
IDLE_S = 30.0


class _Stack(Generic[Connection]):
    """Idle connections, the last used on top."""

    def __init__(self, make: Callable[[], Connection]) -> None:
        self._make = make
        self._idle: deque[tuple[float, Connection]] = deque()

    def take(self) -> Connection:
        try:
            return self._idle.pop()[1]
        except IndexError:
            return self._make()

    def give(self, connection: Connection) -> Connection | None:
        """Put it back; give one that has been idle for too long, to close."""
        now_s = time.monotonic()
        self._idle.append((now_s, connection))
        try:
            oldest = self._idle.popleft()
        except IndexError:  # other threads took them all
            return None
        if now_s - oldest[0] > IDLE_S:
            return oldest[1]
        self._idle.appendleft(oldest)
        return None

    def drain(self) -> list[Connection]:
        connections = [connection for _, connection in self._idle]
        self._idle.clear()
        return connections


def _context(tls: bool) -> ssl.SSLContext:
    """One for all connections: loading the CA certificates takes longer than many a request."""
    return httpx.create_ssl_context() if tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


_ONE = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=IDLE_S)


def _turn_timeout(request: httpx.Request) -> httpx.PoolTimeout:
    return httpx.PoolTimeout(f"{MAX_CONNECTIONS} requests stayed in flight", request=request)


class ConnectionPool(httpx.BaseTransport):
    """For threads. Its responses are read to their end."""

    def __init__(self, tls: bool) -> None:
        def make() -> tuple[_Stack[httpx.HTTPTransport], threading.Semaphore]:
            context = _context(tls)
            stack = _Stack(lambda: httpx.HTTPTransport(verify=context, limits=_ONE, trust_env=False))
            return stack, threading.Semaphore(MAX_CONNECTIONS)

        # What is idle is in nobody's hands: closing it in a child closes descriptors and sends nothing.
        self._mine = PerProcess(make, lambda parents: _close(parents[0]))

    @property
    def _stack(self) -> _Stack[httpx.HTTPTransport]:
        return self._mine.get()[0]

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        stack, turns = self._mine.get()
        if not turns.acquire(timeout=request.extensions["timeout"]["pool"]):
            raise _turn_timeout(request)
        stale = None
        try:
            connection = stack.take()
            try:
                response = connection.handle_request(request)
                try:
                    response.read()
                finally:
                    response.close()
            finally:
                stale = stack.give(connection)
        finally:
            turns.release()
            if stale is not None:
                stale.close()
        return response

    def close(self) -> None:
        _close(self._stack)


def _close(stack: _Stack[httpx.HTTPTransport]) -> None:
    for connection in stack.drain():
        connection.close()


class AsyncConnectionPool(httpx.AsyncBaseTransport):
    """For asyncio. Its responses are read to their end."""

    def __init__(self, tls: bool) -> None:
        def make() -> tuple[_Stack[httpx.AsyncHTTPTransport], asyncio.Semaphore]:
            context = _context(tls)
            stack = _Stack(lambda: httpx.AsyncHTTPTransport(verify=context, limits=_ONE, trust_env=False))
            return stack, asyncio.Semaphore(MAX_CONNECTIONS)

        # The parent's are left alone: its event loop alone could close them, and TLS would say goodbye.
        self._mine = PerProcess(make)

    @property
    def _stack(self) -> _Stack[httpx.AsyncHTTPTransport]:
        return self._mine.get()[0]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        stack, turns = self._mine.get()
        if turns.locked():
            try:
                async with asyncio.timeout(request.extensions["timeout"]["pool"]):
                    await turns.acquire()
            except TimeoutError:
                raise _turn_timeout(request) from None
        else:
            await turns.acquire()
        stale = None
        try:
            connection = stack.take()
            try:
                response = await connection.handle_async_request(request)
                try:
                    await response.aread()
                finally:
                    await response.aclose()
            finally:
                stale = stack.give(connection)
        finally:
            turns.release()
            if stale is not None:
                await stale.aclose()
        return response

    async def aclose(self) -> None:
        for connection in self._stack.drain():
            await connection.aclose()
