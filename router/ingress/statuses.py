"""The HTTP status of each typed error from below."""

from __future__ import annotations

from optimizers.tensors import TensorError
from router.ingress import semantics
from router.ingress.codec.protocol import MalformedRequest
from router.ingress.semantics import HttpError
from router.service.errors import (
    Conflict,
    DeadlinePassed,
    JobEnded,
    NotAuthenticated,
    NotPermitted,
    Refused,
    RowsFailed,
    TooManyRows,
    Unavailable,
    UnknownModel,
    UnknownModelVariant,
    UnknownRequest,
)
from workers.queue.job import JobState


def http_error(error: Exception) -> HttpError:
    """The status of each typed error from below; 500 for any other."""
    if isinstance(error, HttpError):
        return error
    detail = str(error)
    if isinstance(error, Refused):
        if error.kind == "unserved":
            return HttpError(422, detail, kind=error.kind)
        return HttpError(429, detail, headers=semantics.retry_after(error.retry_after_s), kind=error.kind)
    if isinstance(error, JobEnded):
        status = {JobState.EXPIRED: 504, JobState.CANCELLED: 410, JobState.FAILED: 422}
        state = error.status.state
        return HttpError(status.get(state, 500), detail, state=state.value, id=error.status.id)
    if isinstance(error, NotAuthenticated):
        return HttpError(401, detail, headers=[(b"www-authenticate", b'Bearer realm="hybrid-router"')])
    if isinstance(error, Unavailable):
        return HttpError(503, detail, headers=semantics.retry_after(1.0))
    known: dict[type[Exception], int] = {
        MalformedRequest: 400,
        TensorError: 422,
        NotPermitted: 403,
        RowsFailed: 422,
        TooManyRows: 413,
        UnknownModel: 404,
        UnknownModelVariant: 404,
        UnknownRequest: 404,
        Conflict: 409,
        DeadlinePassed: 504,
    }
    for kind, code in known.items():
        if isinstance(error, kind):
            return HttpError(code, detail)
    return HttpError(500, detail)
