"""What an answer looks like on HTTP: a result, a promise of one, and what a model is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from optimizers.tensors import TensorSpec
from router.ingress import semantics
from router.ingress.calls import answer_parameters
from router.ingress.codec import protocol
from router.ingress.codec.protocol import HEADER_LENGTH, DecodedBody
from router.ingress.codec.steps import Steps
from router.ingress.semantics import Headers, Response, json_answer
from router.service.requests import Answer, PendingRequest, ServedModel

_HEADER_LENGTH = HEADER_LENGTH.encode()


def prefix(scope: Mapping[str, Any]) -> str:
    """Where the application is mounted, without a slash at the end."""
    root: str = scope.get("root_path", "")
    return root.rstrip("/")


def describe(model: ServedModel, variant: str | None = None) -> dict[str, Any]:
    """The protocol's model metadata, and what each variant is."""
    variants = model.variants if variant is None else {variant: model.variants[variant]}
    return {
        "name": model.name,
        "versions": list(variants),
        "platform": "hybrid-router",
        "inputs": [spec.to_json() for spec in model.inputs],
        "outputs": [spec.to_json() for spec in model.outputs],
        "parameters": {
            name: {"runtime": m.runtime, "quality": dict(m.quality), "size_bytes": m.size_bytes}
            for name, m in variants.items()
        },
    }


def accepted(
    pending: PendingRequest, scope: Mapping[str, Any], more: Headers, trace: str | None = None
) -> Response:
    """The promise of a result; ``trace`` is the trace context that the request came with."""
    headers: Headers = [
        *more,
        (b"location", f"{prefix(scope)}/v2/requests/{pending.id}".encode()),
        (b"retry-after", b"1"),
        (b"path", b"batch"),
    ]
    body: dict[str, Any] = {"id": pending.id, "state": pending.state.value}
    if pending.route:
        headers.append((b"route", pending.route.encode()))
        body["route"] = pending.route
    if pending.predicted_ms is not None:
        headers.append((b"predicted-ms", b"%.1f" % pending.predicted_ms))
        body["predicted_ms"] = round(pending.predicted_ms, 3)
    if trace is not None:
        headers.append((b"traceparent", trace.encode()))
    return json_answer(202, body, headers)


@lru_cache(maxsize=1_000)
def _named(route: str, path: str, variant: str) -> Sequence[tuple[bytes, bytes]]:
    """The headers that do not change from answer to answer."""
    return (b"route", route.encode()), (b"path", path.encode()), (b"variant", variant.encode())


def answered(
    answer: Answer, specs: Sequence[TensorSpec], request: DecodedBody, trace: str | None
) -> Steps[Response]:
    """A result, with the trace context that its request came with; large ones take several steps."""
    parameters = answer_parameters(answer)
    headers: Headers = [
        *_named(answer.route, answer.path, answer.variant),
        (b"queued-ms", b"%.3f" % answer.queued_ms),
        (b"deadline-met", b"true" if answer.deadline_met else b"false"),
    ]
    if answer.predicted_ms is not None:
        headers.append((b"predicted-ms", b"%.3f" % answer.predicted_ms))
    envelope: dict[str, Any] = {
        "model_name": answer.model,
        "model_version": answer.variant,
        "id": request.id if request.id is not None else answer.id or "",
        "parameters": parameters,
    }
    body, header_length = yield from protocol.encode_steps(
        answer.outputs, specs, wanted=request.outputs, binary=request.binary, envelope=envelope
    )
    if trace is not None:
        headers.append((b"traceparent", trace.encode()))
    if header_length is None:
        return 200, [(b"content-type", semantics.JSON), *headers], body
    headers.append((_HEADER_LENGTH, b"%d" % header_length))
    return 200, [(b"content-type", b"application/octet-stream"), *headers], body
