"""Calls from pages of other origins (CORS, the Fetch standard), as far as the policy lists their origins.

Pure. Credentials that a browser keeps, such as cookies, are never allowed: a page sends its API key in a
header, which it can only do if it knows the key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from router.ingress.semantics import Headers
from router.policy.sections import CorsSection

#: What a page may send beside the headers that every page may.
_SENDS = (
    b"authorization, content-encoding, content-type, idempotency-key, inference-header-content-length, "
    b"latency-budget-ms, prefer, tenant, traceparent, x-api-key, x-request-id"
)
#: What its script may read beside the headers that every script may.
_READS = (
    b"deadline-met, etag, inference-header-content-length, location, path, predicted-ms, preference-applied, "
    b"queued-ms, retry-after, retry-after-ms, route, traceparent, variant, www-authenticate, x-request-id"
)
_MAX_AGE_S = b"600"


def preflight(methods: Sequence[str]) -> Headers:
    """What an ``OPTIONS`` tells a browser, if its page's origin is allowed, which `add_to` says."""
    return [
        (b"access-control-allow-methods", ", ".join(methods).encode()),
        (b"access-control-allow-headers", _SENDS),
        (b"access-control-max-age", _MAX_AGE_S),
    ]


def add_to(headers: Headers, scope: Mapping[str, Any], cors: CorsSection) -> None:
    """Add to an answer's headers whether the page that asks may read it; nothing if no origin is listed."""
    if not cors.origins:
        return
    # The answer depends on who asks, also where the asker is nobody's page: caches must know.
    headers.append((b"vary", b"origin"))
    origin = next((value for name, value in scope["headers"] if name == b"origin"), None)
    if origin is None:
        return
    if "*" in cors.origins:
        headers.append((b"access-control-allow-origin", b"*"))
    elif origin.decode("latin-1") in cors.origins:
        headers.append((b"access-control-allow-origin", origin))
    else:
        return
    headers.append((b"access-control-expose-headers", _READS))
