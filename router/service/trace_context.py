"""The caller's trace context (W3C ``traceparent``): read, never made up, and passed on. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

_FORM = re.compile(rb"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def trace_parent(headers: Mapping[bytes, bytes]) -> str | None:
    """The ``traceparent`` among the headers (names in lower case); None where there is none, or a malformed
    one, which the specification says to ignore."""
    raw = headers.get(b"traceparent")
    if raw is None or raw.startswith(b"ff") or not _FORM.fullmatch(raw):
        return None
    return raw.decode("ascii")


def trace_id(trace: str) -> str:
    """The trace's id in a ``traceparent``, 32 hex digits."""
    return trace.split("-")[1]
