"""The gRPC status of each typed error from below: what HTTP would say, in gRPC's words.

There is one table of errors, `router.ingress.statuses`; here its statuses only get their gRPC names.
"""

from __future__ import annotations

from typing import NamedTuple

from grpc import StatusCode

from router.ingress.statuses import http_error
from router.service.requests import PendingRequest

#: Trailers must stay small: proxies cut connections over larger ones.
_MAX_DETAIL_CHARS = 1_000
_CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    409: StatusCode.ALREADY_EXISTS,
    410: StatusCode.CANCELLED,
    # Not RESOURCE_EXHAUSTED, which clients try again: it would be as large the next time.
    413: StatusCode.INVALID_ARGUMENT,
    415: StatusCode.INVALID_ARGUMENT,
    422: StatusCode.INVALID_ARGUMENT,
    429: StatusCode.RESOURCE_EXHAUSTED,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}


class StillWaiting(Exception):
    """A queued request whose caller has waited for long enough; it goes on, and is asked for by its id."""

    def __init__(self, pending: PendingRequest) -> None:
        super().__init__(
            f"request {pending.id} is accepted and goes on in the queue; get its result over HTTP from "
            f"/v2/requests/{pending.id}, or send it again with its idempotency-key"
        )
        self.pending = pending


class GrpcStatus(NamedTuple):
    """How a call ends: its code, a sentence, and metadata that follows it."""

    code: StatusCode
    detail: str
    trailing: tuple[tuple[str, str], ...] = ()


def grpc_status(error: Exception) -> GrpcStatus:
    """The end of a call that failed with ``error``.

    RESOURCE_EXHAUSTED carries ``retry-after`` and ``retry-after-ms``, a queued request's end ``id`` and
    ``state``. `StillWaiting` is DEADLINE_EXCEEDED, which says that the work may yet be done, and not
    UNAVAILABLE, upon which clients send the same work a second time.
    """
    if isinstance(error, StillWaiting):
        pending = error.pending
        place = f"/v2/requests/{pending.id}"
        trailing = (("id", pending.id), ("state", pending.state.value), ("location", place))
        return GrpcStatus(StatusCode.DEADLINE_EXCEEDED, str(error), trailing)
    known = http_error(error)
    headers = [(name.decode(), value.decode("latin-1")) for name, value in known.headers]
    members = [(name, str(value)) for name, value in known.members.items()]
    detail = " ".join(known.detail.split())
    if len(detail) > _MAX_DETAIL_CHARS:
        detail = detail[: _MAX_DETAIL_CHARS - 3] + "..."
    return GrpcStatus(_CODES.get(known.status, StatusCode.INTERNAL), detail, (*headers, *members))
