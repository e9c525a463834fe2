"""Clients that send a byte now and then, many at once, and what becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

#: As many connections are opened at one time.
_OPEN_AT_ONCE = 50
_READ_BYTES = 64 << 10


@dataclass
class SlowClients:
    """What became of them: the status of the answer (0 for a closed connection), and after how long."""

    count: int
    opened: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    after_s: list[float] = field(default_factory=list)
    _all: asyncio.Event = field(default_factory=asyncio.Event)
    _open: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_open(self, within_s: float) -> None:
        async with asyncio.timeout(within_s):
            await self._open.wait()

    async def wait_ended(self, within_s: float) -> None:
        """Until every one of them has been ended by the server. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            await self._all.wait()

    def _ended(self, status: int, after_s: float) -> None:
        self.statuses[status] += 1
        self.after_s.append(after_s)
        if len(self.after_s) == self.count:
            self._all.set()

    def _opened(self) -> None:
        self.opened += 1
        if self.opened == self.count:
            self._open.set()


def trickling(pieces: Iterator[bytes], every_s: float) -> Callable[[], Awaitable[dict[str, Any]]]:
    """ASGI's ``receive`` for a client that sends a piece every so often, and never the last one."""

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(every_s)
        return {"type": "http.request", "body": next(pieces), "more_body": True}

    return receive


@asynccontextmanager
async def slow_clients(
    url: str, path: str, count: int, *, every_s: float = 2.0, in_head: bool = False
) -> AsyncIterator[SlowClients]:
    """``count`` clients that post: a byte now and then of the body, or (``in_head``) of the head."""
    clients, gate = SlowClients(count), asyncio.Semaphore(_OPEN_AT_ONCE)
    tasks = [asyncio.create_task(_client(clients, gate, url, path, every_s, in_head)) for _ in range(count)]
    try:
        yield clients
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _client(
    clients: SlowClients, gate: asyncio.Semaphore, url: str, path: str, every_s: float, in_head: bool
) -> None:
    address = urlsplit(url)
    head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 100000\r\n"
    async with gate:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write((head + ("X-Slow: " if in_head else "\r\n{")).encode())
        await writer.drain()
    began = time.monotonic()
    clients._opened()
    answer = b""
    try:
        while True:
            try:
                async with asyncio.timeout(every_s):
                    answer = await reader.read(_READ_BYTES)
                break
            except TimeoutError:
                writer.write(b"x" if in_head else b" ")
                await writer.drain()
    except OSError:
        answer = b""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    parts = answer.split(b" ", 2)
    clients._ended(int(parts[1]) if len(parts) > 2 else 0, time.monotonic() - began)


async def _until_told(url: str, path: str, count: int) -> None:
    """Half of them slow in the head, half in the body. Says "open"; told to end, how many had been ended."""
    half = count // 2
    async with (
        slow_clients(url, path, half, in_head=True) as heads,
        slow_clients(url, path, count - half) as bodies,
    ):
        await asyncio.gather(heads.wait_open(120), bodies.wait_open(120))
        print("open", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        print(len(heads.after_s), len(bodies.after_s), flush=True)


if __name__ == "__main__":
    # In a process of its own, so that they do not slow down whoever measures beside them.
    asyncio.run(_until_told(sys.argv[1], sys.argv[2], int(sys.argv[3])))
