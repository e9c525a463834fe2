"""HTTP/1.1 over a pool of kept connections, light enough that the sender is not what gets measured.

The moment of an answer is read when its last bytes come, before anything else is done with them.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_CONNECTIONS = 1_024
_CONNECT_WITHIN_S = 5.0
_NO_BODY = (204, 304)


class ExchangeError(Exception):
    """An exchange that brought no whole answer; the message says why."""


class Dropped(ExchangeError):
    """The connection ended before the first byte of an answer came."""


@dataclass(frozen=True, slots=True)
class TimedReply:
    """One answer; header names in lower case. Times by ``time.perf_counter``, seconds."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    sent_s: float
    at_s: float


class _Connection(asyncio.Protocol):
    """One request at a time on one connection."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[TimedReply] | None = None
        self._buffer = b""
        self._sent_s = 0.0
        self.alive, self.used = False, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.alive = transport, True

    def send(self, data: bytes) -> asyncio.Future[TimedReply]:
        """Write one request; the future ends with its answer, or with `ExchangeError`."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._buffer, self._sent_s = b"", time.perf_counter()
        if self.alive:
            self._transport.write(data)
        else:
            self._answer.set_exception(Dropped("the server closed the connection"))
        return self._answer

    def data_received(self, data: bytes) -> None:
        at_s = time.perf_counter()
        answer = self._answer
        if answer is None or answer.done():
            self.close()  # nobody asked: what follows could be taken for the next answer
            return
        self._buffer = self._buffer + data if self._buffer else data
        try:
            parsed = _parse(self._buffer)
        except (ValueError, IndexError) as error:
            self.close()
            answer.set_exception(ExchangeError(f"the answer is not HTTP that can be read: {error}"))
            return
        if parsed is not None:
            status, headers, body = parsed
            self.used = True
            if headers.get("connection", "").lower() == "close":
                self.close()
            answer.set_result(TimedReply(status, headers, body, self._sent_s, at_s))

    def connection_lost(self, error: Exception | None) -> None:
        self.alive = False
        answer = self._answer
        if answer is not None and not answer.done():
            why = str(error) if error else "the server closed the connection"
            answer.set_exception(ExchangeError(f"{why} within an answer") if self._buffer else Dropped(why))

    def close(self) -> None:
        self.alive = False
        if self._transport is not None:
            self._transport.close()


def _parse(data: bytes) -> tuple[int, dict[str, str], bytes] | None:
    """Status, headers and body; None while some of it is missing. Raises ValueError for anything else."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    first, *lines = data[:end].decode("latin-1").split("\r\n")
    if not first.startswith("HTTP/1."):
        raise ValueError(f"it begins with {first[:40]!r}")
    status = int(first.split(" ", 2)[1])
    if 100 <= status < 200:
        return _parse(data[end + 4 :])
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    length = int(headers.get("content-length", 0 if status in _NO_BODY else -1))
    if length < 0:
        raise ValueError("it has no Content-Length")
    body = data[end + 4 :]
    if len(body) > length:
        raise ValueError("more bytes came than Content-Length announced")
    return (status, headers, body) if len(body) == length else None


class HttpPool:
    """A pool of connections to one server; to be used from one event loop.

    ``url`` may have a path, which stands before every path of a request. ``headers`` go with each.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not a server's URL; give one like http://127.0.0.1:8000")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host, self._port = parts.hostname, parts.port or (443 if self._tls else 80)
        self.prefix = parts.path.rstrip("/")
        named = {"Host": parts.netloc, **(headers or {})}
        self._plain = "".join(f"{name}: {value}\r\n" for name, value in named.items()).encode("latin-1")
        self._max = max_connections
        self._idle: list[_Connection] = []
        self._open = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def warm(self, connections: int) -> None:
        """Have so many connections open, so that the first requests need not wait for theirs."""
        taken = await asyncio.gather(*(self._take() for _ in range(min(connections, self._max))))
        for connection in taken:
            self._give(connection)

    async def exchange(
        self, method: str, path: str, head: bytes = b"", body: bytes = b"", timeout_s: float = 30.0
    ) -> TimedReply:
        """One request and its answer. ``path`` is absolute on the server; ``head`` holds whole header lines.

        A request whose kept connection the server had just closed is sent once more, on a new one.
        Raises `ExchangeError`.
        """
        line = f"{method} {path} HTTP/1.1\r\n".encode("latin-1")
        data = b"".join((line, self._plain, head, b"Content-Length: %d\r\n\r\n" % len(body), body))
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    connection = await self._take()
                    reused = connection.used
                    try:
                        return await connection.send(data)
                    except Dropped:
                        if not reused:
                            raise
                    except asyncio.CancelledError:
                        connection.close()  # its answer may still come: it must not be the next one's
                        raise
                    finally:
                        self._give(connection)
        except TimeoutError:
            raise ExchangeError(f"no answer within {timeout_s:.3g} s") from None
        except OSError as error:
            raise ExchangeError(f"no connection to {self._host}:{self._port}: {error}") from None

    async def _take(self) -> _Connection:
        while True:
            while self._idle:
                connection = self._idle.pop()
                if connection.alive:
                    return connection
                self._open -= 1
            if self._open < self._max:
                return await self._connect()
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._wake()  # the turn that came too late for this one is another's
                raise

    async def _connect(self) -> _Connection:
        self._open += 1
        try:
            async with asyncio.timeout(_CONNECT_WITHIN_S):
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(
                    _Connection, self._host, self._port, ssl=self._tls
                )
        except BaseException:
            self._open -= 1
            self._wake()
            raise
        return connection

    def _give(self, connection: _Connection) -> None:
        if connection.alive:
            self._idle.append(connection)
        else:
            self._open -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    async def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._open -= len(self._idle)
        self._idle.clear()
        await asyncio.sleep(0)  # a transport says goodbye in the loop's next round
