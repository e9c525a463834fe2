"""What the request log says of one inference request: how it ended, where, and when. No payload, no key."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from router.ingress.statuses import http_error
from router.service.requests import Answer, InferenceRequest, PendingRequest
from router.service.trace_context import trace_id, trace_parent

#: What the model or its runtime said of the content may quote it.
_QUOTES_CONTENT = frozenset({422, 500})


def success(
    outcome: Answer | PendingRequest, request: InferenceRequest, given_id: str | None, started_s: float
) -> dict[str, Any]:
    """The line of a request that was answered or queued.

    ``given_id`` is the id that its caller gave; ``started_s`` is on the monotonic clock.
    """
    line: dict[str, Any] = {
        "outcome": "queued",
        "status": 202,
        "request_id": given_id or outcome.id or _request_id(request.headers),
        "trace_id": trace_id(request.trace) if request.trace else None,
        "tenant": request.tenant or None,
        "model": request.model,
        "route": outcome.route,
        "budget_ms": round(request.budget_ms, 3),
        "predicted_ms": None if outcome.predicted_ms is None else round(outcome.predicted_ms, 3),
        "total_ms": _since_ms(started_s),
    }
    if isinstance(outcome, Answer):
        line |= {
            "outcome": "answered" if outcome.deadline_met else "late",
            "status": 200,
            "variant": outcome.variant,
            "path": outcome.path,
            "queued_ms": round(outcome.queued_ms, 3),
        }
    return line


def failure(
    error: Exception, model: str, tenant: str, headers: Mapping[bytes, bytes], started_s: float
) -> dict[str, Any]:
    """The line of a request that got no result."""
    known = http_error(error)
    trace = trace_parent(headers)
    return {
        "outcome": "failed" if known.status >= 500 else "refused",
        "status": known.status,
        "request_id": _request_id(headers),
        "trace_id": trace_id(trace) if trace else None,
        "tenant": tenant or None,
        "model": model,
        "error": type(error).__name__,
        "reason": None if known.status in _QUOTES_CONTENT else known.detail,
        "total_ms": _since_ms(started_s),
    }


def _request_id(headers: Mapping[bytes, bytes]) -> str | None:
    """Serve gives every request one and answers with it."""
    given = headers.get(b"x-request-id")
    return None if given is None else given[:128].decode("latin-1")


def _since_ms(started_s: float) -> float:
    return round((time.monotonic() - started_s) * 1_000.0, 3)
