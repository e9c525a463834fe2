"""Every path that the ingress answers, in one table: what is dispatched by it is what is documented from it.

Pure: a method and a path in, the name of an operation and what the path holds out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from router.ingress.semantics import HttpError, allow

#: Path template -> method -> operation, ``GET`` first. A part in braces stands for any one part of a path.
#: ``HEAD`` goes with each ``GET``, and ``OPTIONS`` with every path.
TABLE: Mapping[str, Mapping[str, str]] = {
    "/v2": {"GET": "server"},
    "/v2/health/live": {"GET": "live"},
    "/v2/health/ready": {"GET": "ready"},
    "/v2/policy": {"GET": "policy"},
    "/v2/models": {"GET": "models"},
    "/v2/models/{model}": {"GET": "model"},
    "/v2/models/{model}/ready": {"GET": "model_ready"},
    "/v2/models/{model}/stats": {"GET": "model_stats"},
    "/v2/models/{model}/infer": {"POST": "infer"},
    "/v2/models/{model}/versions/{variant}": {"GET": "variant"},
    "/v2/models/{model}/versions/{variant}/ready": {"GET": "variant_ready"},
    "/v2/models/{model}/versions/{variant}/infer": {"POST": "variant_infer"},
    "/v2/requests/{id}": {"GET": "result", "DELETE": "cancel"},
    "/openapi.json": {"GET": "openapi"},
    "/docs": {"GET": "page"},
    "/docs/{asset}": {"GET": "asset"},
}


class RouteMatch(NamedTuple):
    """An operation, and the parts of the path that its template leaves open."""

    operation: str
    arguments: Mapping[str, str]


_PARTS = [(tuple(template.strip("/").split("/")), methods) for template, methods in TABLE.items()]


def find(method: str, path: str) -> RouteMatch:
    """The operation of a path without the prefix that the application is mounted under.

    Slashes at either end do not count, and ``HEAD`` is the operation of ``GET``. Raises `HttpError`: 404 for
    a path that no template fits, 405 with the methods that there are.
    """
    parts, template, operations = _entry(path)
    allow(method, *methods(path))
    pairs = zip(template, parts, strict=True)
    return RouteMatch(
        operations["GET" if method == "HEAD" else method],
        {part[1:-1]: given for part, given in pairs if part.startswith("{")},
    )


def methods(path: str) -> tuple[str, ...]:
    """The methods that a path takes. Raises `HttpError` 404 for a path that no template fits."""
    names = tuple(_entry(path)[2])
    return ("GET", "HEAD", *names[1:], "OPTIONS") if names[0] == "GET" else (*names, "OPTIONS")


def _entry(path: str) -> tuple[Sequence[str], Sequence[str], Mapping[str, str]]:
    """The parts of a path, those of its template, and the operations there."""
    parts = tuple(path.strip("/").split("/"))
    for template, operations in _PARTS:
        if len(template) == len(parts) and all(
            given == part or (part.startswith("{") and given)
            for given, part in zip(parts, template, strict=True)
        ):
            return parts, template, operations
    raise HttpError(
        404, f"no such path {path!r}; the protocol's paths begin with /v2, and /docs shows them all"
    )
