"""The headers, queries and problem documents of the ingress, as OpenAPI describes them. Pure: constants."""

from __future__ import annotations

from typing import Any

from router.ingress.codec.protocol import MAX_TENSORS
from router.ingress.encodings import CODINGS
from router.ingress.openapi.schemas import Schema, ref
from router.ingress.semantics import MAX_KEY_CHARS, MAX_WAIT_S, TITLES

SECURITY_SCHEMES: dict[str, Schema] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
    "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
}


def _at(place: str, name: str, description: str, schema: Schema, **more: Any) -> Schema:
    return {"name": name, "in": place, "description": description, "schema": schema, **more}


_STRING: Schema = {"type": "string"}

VARIANT = {"name": "variant", "in": "path", "required": True, "description": "The variant that must run."}
TENANT = _at(
    "header",
    "Tenant",
    "For whom the request is. With API keys it may only repeat the key's own; without, it is believed.",
    _STRING,
)
INFER_HEADERS: dict[str, Schema] = {
    "id": _at("path", "id", "As the 202 answer gave it.", _STRING, required=True),
    "accept": _at("header", "Accept", "application/octet-stream asks for binary tensors.", _STRING),
    "asset": _at("path", "asset", "Its name.", _STRING, required=True, example="page.css"),
    "if-none-match": _at("header", "If-None-Match", "The ETag of the copy that the caller has.", _STRING),
}

RESULT_QUERY: list[Schema] = [
    _at(
        "query",
        "wait",
        "Seconds to wait for the end before answering 202.",
        {"type": "number", "minimum": 0, "maximum": MAX_WAIT_S, "default": 0},
    ),
    _at(
        "query",
        "output",
        "An output to answer with; may come several times. Without it all.",
        {"type": "array", "items": _STRING, "maxItems": MAX_TENSORS},
    ),
    _at("query", "binary", "Whether tensors come as binary data; else Accept decides.", {"type": "boolean"}),
]


def infer_parameters(default_ms: float, max_ms: float) -> list[Schema]:
    """The headers of an inference request."""
    budget = {"type": "number", "exclusiveMinimum": 0, "maximum": max_ms, "default": default_ms}
    key = {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARS}
    return [
        _at("header", "Latency-Budget-Ms", "How long the answer may take; milliseconds.", budget),
        _at(
            "header",
            "Prefer",
            "`respond-async`: answer 202 at once where the request is queued. `wait=N`: hold it for at most "
            f"N seconds, up to {MAX_WAIT_S:.0f} (RFC 7240). Others are ignored.",
            {"anyOf": [{"type": "string", "enum": ["respond-async", "wait=5"]}, _STRING]},
        ),
        _at(
            "header",
            "Idempotency-Key",
            "Makes a retry safe: the same key and content are the same queued request.",
            key,
        ),
        _at(
            "header",
            "traceparent",
            "The caller's trace (W3C Trace Context); it is passed on and answered.",
            _STRING,
        ),
        _at(
            "header",
            "Content-Encoding",
            f"What the body is compressed with: {' or '.join(CODINGS)}, one of them.",
            {"anyOf": [{"type": "string", "enum": [*CODINGS, "identity"]}, _STRING]},
        ),
        _at(
            "header",
            "Inference-Header-Content-Length",
            "The length of the JSON part where binary tensors follow it; bytes.",
            {"type": "integer", "minimum": 1},
        ),
    ]


_RESPONSE_HEADERS: dict[str, tuple[str, str, Schema]] = {
    "route": ("Route", "The policy's route that took the request.", _STRING),
    "path": ("Path", "Where it ran.", {"type": "string", "enum": ["online", "batch"]}),
    "variant": ("Variant", "The variant that ran.", _STRING),
    "predicted-ms": ("Predicted-Ms", "What was predicted on arrival.", {"type": "number"}),
    "queued-ms": ("Queued-Ms", "How long it waited before it ran.", {"type": "number"}),
    "deadline-met": ("Deadline-Met", "Whether it was ready within the budget.", {"type": "boolean"}),
    "traceparent": ("traceparent", "The trace that the request came with.", _STRING),
    "inference-header-content-length": (
        "Inference-Header-Content-Length",
        "The length of the JSON part where binary tensors follow it.",
        {"type": "integer"},
    ),
    "location": ("Location", "Where to ask for the result.", {"type": "string", "format": "uri-reference"}),
    "retry-after": ("Retry-After", "Seconds, rounded up.", {"type": "integer", "minimum": 0}),
    "retry-after-ms": ("Retry-After-Ms", "The same, exactly.", {"type": "integer", "minimum": 0}),
    "preference-applied": ("Preference-Applied", "The preference that was followed.", _STRING),
    "www-authenticate": ("WWW-Authenticate", "How to bring a key.", _STRING),
    "etag": ("ETag", "The name of this version.", _STRING),
}


def response_headers(*names: str, required: bool = True) -> dict[str, Schema]:
    """The headers of an answer by their names in lower case."""
    return {
        name: {"description": description, "required": required, "schema": schema}
        for name, description, schema in map(_RESPONSE_HEADERS.__getitem__, names)
    }


def json_of(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": ref(schema)}}


def problem_answer(status: int) -> dict[str, Any]:
    """A problem document with the headers that such a status brings."""
    headers = {
        401: response_headers("www-authenticate"),
        429: response_headers("retry-after", "retry-after-ms", required=False),
        503: response_headers("retry-after", required=False),
    }.get(status)
    answer: dict[str, Any] = {
        "description": TITLES[status],
        "content": {"application/problem+json": {"schema": ref("Problem")}},
    }
    return answer | ({"headers": headers} if headers else {})
