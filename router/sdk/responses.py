"""What an answer means: whether it is worth another try, which error it is, which request it is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urlsplit

import orjson

from router.sdk.errors import (
    DeadlineExceeded,
    Forbidden,
    HybridRouterError,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    JobUnknown,
    ModelNotFound,
    ProtocolError,
    Rejected,
    ServerUnavailable,
    Unauthenticated,
)


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True)
class NoResponse:
    """No answer: not reached, hung up, or (``late``) none within the time given."""

    reason: str
    late: bool = False


# What a proxy in front of the router answers by itself while a router is restarted or its route is not
# live yet; from the router these statuses come as JSON and mean what they say.
_PROXY_STATUSES = frozenset((404, 408, 502, 503, 504))

#: What a status means whoever says it: a proxy that asks for a password or limits bodies has no JSON.
_OF_STATUS: dict[int, type[HybridRouterError]] = {
    401: Unauthenticated,
    403: Forbidden,
    408: ServerUnavailable,  # the body did not come through in time
    413: InvalidRequest,
    414: InvalidRequest,
    429: Rejected,
    431: InvalidRequest,
    503: ServerUnavailable,
}
_WORDS = {
    401: "it asks for an API key",
    403: "it does not allow this",
    408: "the request did not reach it in time",
    413: "the request is larger than it takes",
    414: "the address is longer than it takes",
    429: "it takes no more requests now",
    431: "the headers are larger than it takes",
}


def is_transient(reply: Reply) -> bool:
    """Whether the same request may fare better a little later."""
    if reply.status < 400:
        return False
    if reply.status == 429:
        return retry_after_s(reply) is not None
    return reply.status in (408, 503) or (reply.status in _PROXY_STATUSES and not _is_json(reply))


def retry_after_s(reply: Reply | NoResponse) -> float | None:
    """When the server says to try again, in seconds; a date is measured by the server's own ``Date``.

    ``Retry-After-Ms`` is the router's exact figure beside the whole seconds of ``Retry-After``.
    """
    if isinstance(reply, NoResponse):
        return None
    exact_ms = reply.headers.get("retry-after-ms", "")
    if exact_ms.isdigit():
        return int(exact_ms) / 1e3
    value = reply.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(reply.headers.get("date", ""))
    except (TypeError, ValueError):
        return None
    return max(0.0, wait.total_seconds())


def error_of(reply: Reply, *, job_id: str | None = None) -> HybridRouterError:
    """The error that a final answer stands for. ``job_id``: what was asked is the fate of that request."""
    status = reply.status
    problem = _problem(reply)
    id_ = job_id or (str(problem["id"]) if "id" in problem else None)
    about: dict[str, Any] = {"status": status, "problem": problem, "id": id_}
    if status == 429:
        about["retry_after_s"] = retry_after_s(reply)
    kind = _OF_STATUS.get(status)
    if not problem:
        if kind is None:
            kind = ServerUnavailable if status in _PROXY_STATUSES else ProtocolError
        return kind(_proxy_answer(reply), **about)
    message = _reason(problem, status)
    if kind is not None:
        return kind(message, **about)
    if status == 504:
        return DeadlineExceeded(message, **about)
    if status == 410:
        return JobCancelled(message, **about)
    if status == 404:
        return (ModelNotFound if job_id is None else JobUnknown)(message, **about)
    if status >= 500 or (job_id is not None and status == 422):
        return JobFailed(message, **about)
    if 400 <= status < 500:
        return InvalidRequest(message, **about)
    return ProtocolError(f"answered {status}, which has no meaning here: {message}", **about)


def _reason(problem: Mapping[str, Any], status: int) -> str:
    """Title and detail, or the protocol's ``error`` member, without saying the same twice."""
    detail = str(problem.get("detail") or problem.get("error") or "")
    title = str(problem.get("title") or "")
    if title and title.lower() not in detail.lower():
        return f"{title}: {detail}" if detail else title
    return detail or f"answered {status} without a reason"


def _proxy_answer(reply: Reply) -> str:
    """What was answered by something that is not the router: a proxy, or another server."""
    status = reply.status
    if "location" in reply.headers and status < 400:
        return f"answered {status}: moved to {reply.headers['location'][:200]!r}; use that address"
    kind = reply.headers.get("content-type", "no content type")
    text = bytes(reply.content[:120]).decode("utf-8", "replace").strip()
    meaning = f" ({_WORDS[status]})" if status in _WORDS else ""
    return f"answered {status}{meaning} with {kind} instead of JSON: {text!r}"


def _is_json(reply: Reply) -> bool:
    kind = reply.headers.get("content-type", "").partition(";")[0].strip()
    return kind == "application/json" or kind.endswith("+json")


def _problem(reply: Reply) -> dict[str, Any]:
    if not _is_json(reply):
        return {}
    try:
        value = orjson.loads(reply.content)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def read_json(reply: Reply) -> dict[str, Any]:
    """The JSON object in an answer. Raises the answer's error, or ProtocolError, where it holds none."""
    try:
        value = orjson.loads(reply.content)
    except orjson.JSONDecodeError:
        value = None
    if isinstance(value, dict):
        return value
    if reply.status >= 400:
        raise error_of(reply)
    kind = reply.headers.get("content-type", "no content type")
    raise ProtocolError(f"answered {reply.status} with {kind} where a JSON object was expected")


def job_id_of(reply: Reply) -> str:
    """The id in a 202: its body's ``id``, else the last part of its Location."""
    value = _problem(reply).get("id")
    if isinstance(value, str) and value:
        return value
    last = urlsplit(reply.headers.get("location", "")).path.rstrip("/").rpartition("/")[2]
    if not last:
        raise ProtocolError("answered 202 with neither an id nor a Location to ask for the result at")
    return unquote(last)
