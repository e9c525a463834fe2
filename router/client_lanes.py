"""Connections of the SDK: a stack of lanes of one connection each, as httpx transports.

httpx's own pool looks at every connection for every connection whenever a request ends: at 64 in flight
it costs more than the requests. Taking the lane that was used last costs the same however many there are.
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

Lane = TypeVar("Lane")

#: Requests in flight at once; more wait for their turn within their time.
MAX_LANES = 256
#: How long a connection is kept that nobody uses.
IDLE_S = 30.0


class _Stack(Generic[Lane]):
    """Idle lanes, the last used on top."""

    def __init__(self, make: Callable[[], Lane]) -> None:
        self._make = make
        self._idle: deque[tuple[float, Lane]] = deque()

    def take(self) -> Lane:
        try:
            return self._idle.pop()[1]
        except IndexError:
            return self._make()

    def give(self, lane: Lane) -> Lane | None:
        """Put it back; give one that has been idle for too long, to close."""
        now_s = time.monotonic()
        self._idle.append((now_s, lane))
        try:
            oldest = self._idle.popleft()
        except IndexError:  # other threads took them all
            return None
        if now_s - oldest[0] > IDLE_S:
            return oldest[1]
        self._idle.appendleft(oldest)
        return None

    def drain(self) -> list[Lane]:
        lanes = [lane for _, lane in self._idle]
        self._idle.clear()
        return lanes


def _context(tls: bool) -> ssl.SSLContext:
    """One for all lanes: loading the CA certificates takes longer than many a request."""
    return httpx.create_ssl_context() if tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


_ONE = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=IDLE_S)


def _turn_timeout(request: httpx.Request) -> httpx.PoolTimeout:
    return httpx.PoolTimeout(f"{MAX_LANES} requests stayed in flight", request=request)


class Lanes(httpx.BaseTransport):
    """For threads. Its responses are read to their end."""

    def __init__(self, tls: bool) -> None:
        context = _context(tls)
        self._stack = _Stack(lambda: httpx.HTTPTransport(verify=context, limits=_ONE, trust_env=False))
        self._turns = threading.Semaphore(MAX_LANES)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if not self._turns.acquire(timeout=request.extensions["timeout"]["pool"]):
            raise _turn_timeout(request)
        stale = None
        try:
            lane = self._stack.take()
            try:
                response = lane.handle_request(request)
                try:
                    response.read()
                finally:
                    response.close()
            finally:
                stale = self._stack.give(lane)
        finally:
            self._turns.release()
            if stale is not None:
                stale.close()
        return response

    def close(self) -> None:
        for lane in self._stack.drain():
            lane.close()


class AsyncLanes(httpx.AsyncBaseTransport):
    """For asyncio. Its responses are read to their end."""

    def __init__(self, tls: bool) -> None:
        context = _context(tls)
        self._stack = _Stack(lambda: httpx.AsyncHTTPTransport(verify=context, limits=_ONE, trust_env=False))
        self._turns = asyncio.Semaphore(MAX_LANES)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._turns.locked():
            try:
                async with asyncio.timeout(request.extensions["timeout"]["pool"]):
                    await self._turns.acquire()
            except TimeoutError:
                raise _turn_timeout(request) from None
        else:
            await self._turns.acquire()
        stale = None
        try:
            lane = self._stack.take()
            try:
                response = await lane.handle_async_request(request)
                try:
                    await response.aread()
                finally:
                    await response.aclose()
            finally:
                stale = self._stack.give(lane)
        finally:
            self._turns.release()
            if stale is not None:
                await stale.aclose()
        return response

    async def aclose(self) -> None:
        for lane in self._stack.drain():
            await lane.aclose()
