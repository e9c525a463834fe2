"""A request's body: read within a limit and a time, and taken out of its coding.

A server must not be held by who sends slowly. A body has 20 seconds, and a second more for each 16 KiB of it
that have come: the slowest link that anybody infers over is faster, and a byte now and then is not.

Slow heads do not come here: HAProxy keeps a request until its head is whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from router.ingress import encodings
from router.ingress.encodings import EncodingError, Oversized, UnknownCoding
from router.ingress.semantics import ClientLeft, HttpError, Message, Receive, retry_after, whole

BODY_WITHIN_S = 20.0
BODY_BYTES_PER_S = 16 << 10
#: What all unfinished bodies may hold together, and at least two of the largest: whoever sends nearly all of
#: one and then waits holds as much as who means well.
UNFINISHED_BYTES = 512 << 20
#: How often those who read are looked at, which is also how exact their time is. A timer for each of them
#: would cost more than all else here.
_LOOK_EVERY_S = 1.0
_ADVICE = "send it in parts"


class BodyReader:
    """Reads the bodies of one application, and ends those that come too slowly."""

    def __init__(self, unfinished_bytes: int = UNFINISHED_BYTES) -> None:
        self._most_bytes = unfinished_bytes
        #: Who reads, and until which look.
        self._until: dict[asyncio.Task[object], float] = {}
        self._late: set[asyncio.Task[object]] = set()
        self._looks, self._looking = 0, False
        self._held_bytes = 0

    @property
    def reading(self) -> int:
        """How many bodies are on their way."""
        return len(self._until)

    async def read(self, receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> bytes:
        """The whole body, uncompressed, of at most ``limit`` bytes, which also holds for what is sent.

        Raises `ClientLeft`, and `HttpError`: 413 before memory is spent, 408 for a body that is too slow, 429
        for one that finds too many unfinished ones here.
        """
        coding = _coding(headers) if b"content-encoding" in headers else None
        announced = headers.get(b"content-length", b"0")
        length = whole(announced)
        if (length or 0) > limit or (length is None and announced.isdigit()):
            size_shown = length if length is not None else "far too many"
            raise HttpError(
                413, f"the body has {size_shown} bytes, the policy's limits.body is {limit}; {_ADVICE}"
            )
        task = asyncio.current_task()
        assert task is not None
        began = self._looks
        self._until[task] = began + BODY_WITHIN_S / _LOOK_EVERY_S
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)
        try:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                body: bytes = message.get("body", b"")  # nearly every request comes in one piece
            else:
                body = await self._pieces(message, receive, limit, task, began)
        except asyncio.CancelledError:
            if task not in self._late or task.uncancel() > 0:
                raise
            # Whoever trickles on must not keep the connection either. Not so where a body is refused by its
            # size: closing on what is still being sent resets the connection, and loses the answer with it.
            raise HttpError(
                408,
                f"the body did not come within {BODY_WITHIN_S:.0f} s and a second for each "
                f"{BODY_BYTES_PER_S} bytes of it; send it faster, or in smaller requests",
                headers=[(b"connection", b"close")],
            ) from None
        finally:
            del self._until[task]
            if self._late:
                self._late.discard(task)
        if len(body) > limit:
            raise HttpError(413, f"the body is over the policy's limits.body of {limit} bytes; {_ADVICE}")
        return body if coding is None else await _decompressed(body, coding, limit)

    async def _pieces(
        self, message: Message, receive: Receive, limit: int, task: asyncio.Task[object], began: int
    ) -> bytes:
        """A body of which ``message`` has the first piece; no more of it than passes the limit."""
        body = bytearray()
        try:
            while True:
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                piece = message.get("body", b"")
                body += piece
                self._held_bytes += len(piece)
                if len(body) > limit or not message.get("more_body"):
                    return bytes(body)
                if self._held_bytes > max(self._most_bytes, 2 * limit):
                    problem = "too many unfinished bodies are held; come back, send it faster or in parts"
                    raise HttpError(429, problem, headers=retry_after(1.0), kind="full")
                within_s = BODY_WITHIN_S + len(body) / BODY_BYTES_PER_S
                self._until[task] = began + within_s / _LOOK_EVERY_S
                message = await receive()
        finally:
            self._held_bytes -= len(body)

    def _look(self) -> None:
        self._looks += 1
        for task, until in self._until.items():
            if until < self._looks and task not in self._late:
                self._late.add(task)
                task.cancel()
        self._looking = bool(self._until)
        if self._looking:
            asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)


def _coding(headers: Mapping[bytes, bytes]) -> str | None:
    try:
        return encodings.coding_of(headers[b"content-encoding"].decode("latin-1"))
    except UnknownCoding as error:
        accepts = [(b"accept-encoding", encodings.ACCEPTED.encode())]
        raise HttpError(415, str(error), headers=accepts) from None


async def _decompressed(body: bytes, coding: str, limit: int) -> bytes:
    try:
        if len(body) <= encodings.INFLATE_HERE_BYTES:
            return encodings.decompress(body, coding, limit)
        return await asyncio.to_thread(encodings.decompress, body, coding, limit)
    except Oversized:
        raise HttpError(
            413, f"the {coding} body holds more than the policy's limits.body of {limit} bytes; {_ADVICE}"
        ) from None
    except EncodingError as error:
        raise HttpError(400, str(error)) from None
