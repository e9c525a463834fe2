"""What HTTP needs to know of a request and an answer: headers, bodies, budgets, waits, problem documents."""

from __future__ import annotations

import asyncio
import math
import re
import reprlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, NamedTuple
from urllib.parse import unquote_plus

import orjson

from router import units
from router.ingress import encodings
from router.ingress.codec.protocol import HEADER_LENGTH, MAX_TENSORS, excerpt

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
#: Status, headers and body of an answer.
Response = tuple[int, Headers, bytes]

JSON = b"application/json"
MAX_WAIT_S = 60.0
MAX_KEY_CHARS = 200
#: What HAProxy takes by default is less; a replica's own port takes what comes.
MAX_HEADERS, MAX_HEADER_BYTES = 100, 16 << 10
MAX_PATH_CHARS = 1_000
_MAX_DETAIL_CHARS = 400
#: No length has more digits; Python refuses to read thousands of them.
_MAX_DIGITS = 18
_WAIT = re.compile(r"(?:^|[\s,;])wait\s*=\s*\"?([0-9]+)")

TITLES = {
    400: "Malformed request",
    401: "An API key is needed",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    408: "Too slow",
    409: "Idempotency key conflict",
    410: "Cancelled",
    413: "Too large",
    414: "Path too long",
    415: "Unsupported encoding",
    422: "The request does not fit the model",
    429: "Not admitted",
    431: "Headers too large",
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
    detail = error.detail
    if len(detail) > _MAX_DETAIL_CHARS:  # it quotes what the caller sent
        detail = detail[: _MAX_DETAIL_CHARS - 3] + "..."
    body = {
        "type": "about:blank",
        "title": TITLES.get(error.status, "Failed"),
        "status": error.status,
        "detail": detail,
        "error": detail,
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
    """The request's headers by name in lower case. Raises the 431 for more of them than anybody needs."""
    pairs = scope["headers"]
    headers = dict(pairs)
    # Joining is the fastest way to add up lengths.
    if len(pairs) > MAX_HEADERS or len(b"".join(headers.values())) > MAX_HEADER_BYTES:
        limits = f"{MAX_HEADERS} headers and {MAX_HEADER_BYTES} bytes of values in all are allowed"
        raise HttpError(431, f"the request has more headers than are read: {limits}")
    return headers


def check_path(path: str) -> None:
    """Raise the 414 for a path that is longer than any that leads somewhere."""
    if len(path) > MAX_PATH_CHARS:
        raise HttpError(414, f"the path has {len(path)} characters, {MAX_PATH_CHARS} are allowed")


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _quoted(value: bytes) -> str:
    """A header's value in a sentence: quoted and short."""
    return reprlib.repr(_text(value))


def whole(value: bytes) -> int | None:
    """A header's value as a whole number; None for what is none, or has more digits than any length."""
    return int(value) if value.isdigit() and len(value) <= _MAX_DIGITS else None


def idempotency_key(headers: Mapping[bytes, bytes]) -> str | None:
    raw = headers.get(b"idempotency-key")
    if raw is None:
        return None
    if not 0 < len(raw) <= MAX_KEY_CHARS:
        allowed = f"1 to {MAX_KEY_CHARS} are allowed"
        raise HttpError(400, f"header Idempotency-Key has {len(raw)} characters, {allowed}")
    return _text(raw)


def budget_ms(parameters: Mapping[str, Any], headers: Mapping[bytes, bytes], default_ms: float) -> float:
    """The latency budget, from the first of: parameter, header, Triton's ``timeout`` (us), the default."""
    if "latency_budget_ms" in parameters:
        return _budget(parameters["latency_budget_ms"], "parameter latency_budget_ms", 1.0)
    header = headers.get(b"latency-budget-ms")
    if header is not None:
        try:
            number = float(header)
        except ValueError:
            raise HttpError(400, f"header Latency-Budget-Ms: {_quoted(header)} is not a number") from None
        return _budget(number, "header Latency-Budget-Ms", 1.0)
    if parameters.get("timeout"):
        return _budget(parameters["timeout"], "parameter timeout (microseconds)", 1_000.0)
    return default_ms


def _budget(value: Any, what: str, per_ms: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise HttpError(400, f"{what}: {excerpt(value)} is not a number")
    ms = value / per_ms
    if not 0 < ms <= units.MAX_BUDGET_MS:
        raise HttpError(400, f"{what}: {excerpt(value)} is out of range; above 0 and at most 30 days")
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


class ResultForm(NamedTuple):
    """How the result of a queued request is asked for: how long to wait, which outputs, in which form."""

    wait_s: float = 0.0
    outputs: tuple[str, ...] = ()
    binary: bool = False

    def check(self, known: Iterable[str]) -> None:
        """Raise the 400 for an output that the model does not give."""
        names = tuple(known)
        for name in self.outputs:
            if name not in names:
                raise HttpError(
                    400, f"query output={reprlib.repr(name)} is no output; the model gives {', '.join(names)}"
                )


def result_form(query: bytes, headers: Mapping[bytes, bytes]) -> ResultForm:
    """``?wait=20&output=scores&output=label&binary=true``; without ``binary``, ``Accept`` decides.

    Raises the 400 for a name that is not known, so that a slip is not taken for a wish, and for a bad value.
    """
    wait_s, outputs = 0.0, list[str]()
    binary = b"application/octet-stream" in headers.get(b"accept", b"")
    for part in query.split(b"&"):
        if not part:
            continue
        raw_name, _, raw = part.partition(b"=")
        name, value = unquote_plus(_text(raw_name)), unquote_plus(_text(raw))
        if name == "wait":
            wait_s = _wait_s(value)
        elif name == "output":
            if len(outputs) >= MAX_TENSORS:
                raise HttpError(400, f"query output is given more than {MAX_TENSORS} times")
            outputs.append(value)
        elif name == "binary":
            if value.lower() not in ("true", "false"):
                raise HttpError(400, f"query binary={reprlib.repr(value)} must be true or false")
            binary = value.lower() == "true"
        else:
            raise HttpError(
                400, f"query {reprlib.repr(name)} is not known here; there is output, binary and wait"
            )
    return ResultForm(wait_s, tuple(outputs), binary)


def _wait_s(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MAX_WAIT_S:
        raise HttpError(400, f"query wait={reprlib.repr(value)} must be 0 to {MAX_WAIT_S:.0f} seconds")
    return seconds


async def encoded(answer: Response, headers: Mapping[bytes, bytes]) -> Response:
    """A large answer in the coding that the caller takes, if it pays.

    Call it for bodies of at least ``encodings.WORTH_BYTES`` only: others never gain.
    """
    status, about, body = answer
    if any(name == b"content-encoding" for name, _ in about):
        return answer
    about = [*about, (b"vary", b"accept-encoding")]
    accepts = headers.get(b"accept-encoding")
    coding = encodings.chosen(_text(accepts)) if accepts else None
    if coding is None:
        return status, about, body
    if len(body) <= encodings.DEFLATE_HERE_BYTES:
        packed = encodings.compress(body, coding)
    else:
        packed = await asyncio.to_thread(encodings.compress, body, coding)
    if packed is None:
        return status, about, body
    return status, [*about, (b"content-encoding", coding.encode())], packed


def header_length(headers: Mapping[bytes, bytes]) -> int | None:
    """The length of the JSON part of a body with binary tensors; None where all of it is JSON."""
    raw = headers.get(HEADER_LENGTH.encode())
    if raw is None:
        return None
    length = whole(raw)
    if length is None:
        raise HttpError(400, f"header {HEADER_LENGTH}: {_quoted(raw)} is not a length in bytes")
    return length
