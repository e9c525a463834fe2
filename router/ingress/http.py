"""What HTTP needs to know of a request and an answer: headers, bodies, budgets, waits, problem documents."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import orjson

from router import units
from router.ingress.protocol import HEADER_LENGTH

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
#: Status, headers and body of an answer.
Response = tuple[int, Headers, bytes]

JSON = b"application/json"
MAX_WAIT_S = 60.0
_MAX_KEY_CHARS = 200
#: No length has more digits; Python refuses to read thousands of them.
_MAX_DIGITS = 18
_WAIT = re.compile(r"(?:^|[\s,;])wait\s*=\s*\"?([0-9]+)")

_TITLES = {
    400: "Malformed request",
    401: "An API key is needed",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "Idempotency key conflict",
    410: "Cancelled",
    413: "Too large",
    415: "Unsupported encoding",
    422: "The request does not fit the model",
    429: "Not admitted",
    500: "Failed",
    503: "Not ready",
    504: "Deadline passed",
}


class HttpError(Exception):
    """An error with its status, as a problem document (RFC 9457)."""

    def __init__(self, status: int, detail: str, *, headers: Headers | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.members = status, detail, headers or [], members


class ClientLeft(Exception):
    """The connection ended before the body did; there is nobody to answer."""


def json_answer(status: int, value: Any, headers: Headers | None = None) -> Response:
    return status, [(b"content-type", JSON), *(headers or [])], orjson.dumps(value)


def problem(error: HttpError) -> Response:
    """The error as ``application/problem+json``, with the protocol's own ``error`` member."""
    body = {
        "type": "about:blank",
        "title": _TITLES.get(error.status, "Failed"),
        "status": error.status,
        "detail": error.detail,
        "error": error.detail,
        **error.members,
    }
    return error.status, [(b"content-type", b"application/problem+json"), *error.headers], orjson.dumps(body)


def retry_after(seconds: float | None) -> Headers:
    """Whole seconds, rounded up (RFC 9110), and the exact figure beside it."""
    if seconds is None:
        return []
    exact = b"%d" % math.ceil(seconds * 1_000)
    return [(b"retry-after", b"%d" % max(1, math.ceil(seconds))), (b"retry-after-ms", exact)]


def allow(method: str, *allowed: str) -> None:
    """Raise the 405 that names the methods there are, unless ``method`` is one of them."""
    if method not in allowed:
        names = ", ".join(allowed)
        raise HttpError(
            405, f"{method} is not allowed here; use {names}", headers=[(b"allow", names.encode())]
        )


def headers_of(scope: Mapping[str, Any]) -> dict[bytes, bytes]:
    return dict(scope["headers"])


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _shown(value: bytes) -> str:
    """A header's value in a sentence: quoted and short."""
    return reprlib.repr(_text(value))


def _whole(value: bytes) -> int | None:
    return int(value) if value.isdigit() and len(value) <= _MAX_DIGITS else None


def idempotency_key(headers: Mapping[bytes, bytes]) -> str | None:
    raw = headers.get(b"idempotency-key")
    if raw is None:
        return None
    if not 0 < len(raw) <= _MAX_KEY_CHARS:
        allowed = f"1 to {_MAX_KEY_CHARS} are allowed"
        raise HttpError(400, f"header Idempotency-Key has {len(raw)} characters, {allowed}")
    return _text(raw)


def budget_ms(parameters: Mapping[str, Any], headers: Mapping[bytes, bytes], default_ms: float) -> float:
    """The latency budget, first found: parameter, header, Triton's ``timeout`` (us), the default."""
    if "latency_budget_ms" in parameters:
        return _budget(parameters["latency_budget_ms"], "parameter latency_budget_ms", 1.0)
    header = headers.get(b"latency-budget-ms")
    if header is not None:
        try:
            number = float(header)
        except ValueError:
            raise HttpError(400, f"header Latency-Budget-Ms: {_shown(header)} is not a number") from None
        return _budget(number, "header Latency-Budget-Ms", 1.0)
    if parameters.get("timeout"):
        return _budget(parameters["timeout"], "parameter timeout (microseconds)", 1_000.0)
    return default_ms


def _budget(value: Any, what: str, per_ms: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise HttpError(400, f"{what}: {reprlib.repr(value)} is not a number")
    ms = value / per_ms
    if not 0 < ms <= units.MAX_BUDGET_MS:
        raise HttpError(400, f"{what}: {value!r} is out of range; above 0 and at most 30 days")
    return ms


def hold_s(headers: Mapping[bytes, bytes], default_s: float) -> float:
    """How long to hold a queued request's connection open: ``Prefer`` (RFC 7240), else the default."""
    raw = headers.get(b"prefer")
    if raw is None:
        return default_s
    prefer = _text(raw).lower()
    wait = _WAIT.search(prefer)
    if wait:
        return min(float(wait[1]), MAX_WAIT_S)
    return 0.0 if "respond-async" in prefer else default_s


def wait_s(query: bytes) -> float:
    """The long poll's ``wait`` in a query, seconds; 0 where there is none."""
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if name == b"wait":
            try:
                seconds = float(value)
            except ValueError:
                seconds = math.nan
            if not 0 <= seconds <= MAX_WAIT_S:
                raise HttpError(400, f"query wait={_shown(value)} must be 0 to {MAX_WAIT_S:.0f} seconds")
            return seconds
    return 0.0


def header_length(headers: Mapping[bytes, bytes]) -> int | None:
    """The length of the JSON part of a body with binary tensors; None where all of it is JSON."""
    raw = headers.get(HEADER_LENGTH.encode())
    if raw is None:
        return None
    length = _whole(raw)
    if length is None:
        raise HttpError(400, f"header {HEADER_LENGTH}: {_shown(raw)} is not a length in bytes")
    return length


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> bytes:
    """The whole body, refused at the limit before memory is spent on it. Raises `ClientLeft`."""
    encoding = headers.get(b"content-encoding", b"identity").lower()
    if encoding != b"identity":
        raise HttpError(415, f"Content-Encoding {_shown(encoding)} is not supported; send the body as it is")
    announced = headers.get(b"content-length", b"0")
    length = _whole(announced)
    if (length or 0) > limit or (length is None and announced.isdigit()):
        size_shown = length if length is not None else "far too many"
        raise HttpError(413, f"the body has {size_shown} bytes, the policy's limits.body is {limit}")
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        chunks = [message.get("body", b"")]  # nearly every request comes in one piece
    else:
        chunks = await _pieces(message, receive, limit)
    body: bytes = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    if len(body) > limit:
        raise HttpError(413, f"the body is over the policy's limits.body of {limit} bytes")
    return body


async def _pieces(message: Message, receive: Receive, limit: int) -> list[bytes]:
    """The pieces of a body, of which ``message`` has the first; no more of them than pass the limit."""
    chunks, size = list[bytes](), 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientLeft
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit or not message.get("more_body"):
            return chunks
        message = await receive()
