"""HTTP in, HTTP out: the Open Inference Protocol over the service, and the status of every error.

Only this module and `router.http` know status codes. A bare ASGI application: a framework's routing and
validation would cost more than the decision.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from optimizers.tensors import TensorError, TensorSpec
from router import http, protocol
from router.http import ClientLeft, Headers, HttpError, Receive, Response, Send, json_answer, problem
from router.protocol import HEADER_LENGTH, InferRequest, ProtocolError
from router.service import Answer, Call, Pending, ServedModel, Service
from router.service_errors import (
    Conflict,
    DeadlinePassed,
    JobEnded,
    Refused,
    RowsFailed,
    ServiceError,
    TooManyRows,
    Unavailable,
    UnknownModel,
    UnknownRequest,
    UnknownVariant,
)
from workers.job import JobState

_log = logging.getLogger("ray.serve")


def _http_error(error: Exception) -> HttpError:
    """The status of each typed error from below."""
    detail = str(error)
    if isinstance(error, Refused):
        if error.kind == "unserved":
            return HttpError(422, detail)
        return HttpError(429, detail, headers=http.retry_after(error.retry_after_s), kind=error.kind)
    if isinstance(error, JobEnded):
        status = {JobState.EXPIRED: 504, JobState.CANCELLED: 410, JobState.FAILED: 422}
        state = error.status.state
        return HttpError(status.get(state, 500), detail, state=state.value, id=error.status.id)
    if isinstance(error, Unavailable):
        return HttpError(503, detail, headers=http.retry_after(1.0))
    known: dict[type[Exception], int] = {
        ProtocolError: 400,
        TensorError: 422,
        RowsFailed: 422,
        TooManyRows: 413,
        UnknownModel: 404,
        UnknownVariant: 404,
        UnknownRequest: 404,
        Conflict: 409,
        DeadlinePassed: 504,
    }
    for kind, code in known.items():
        if isinstance(error, kind):
            return HttpError(code, detail)
    return HttpError(500, detail)


_HEADER_LENGTH = HEADER_LENGTH.encode()
_MAX_PATHS = 1_000


class Ingress:
    """The ASGI application of one router replica."""

    def __init__(self, service: Service, ready: Callable[[], bool], version: str) -> None:
        self._service, self._ready, self._version = service, ready, version
        #: Model and variant of the paths that were asked for, which are few and come often.
        self._infer_paths: dict[str, tuple[str, str | None]] = {}

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            status, headers, body = await self._respond(scope, receive)
        except HttpError as error:
            status, headers, body = problem(error)
        except (ServiceError, ProtocolError, TensorError) as error:
            status, headers, body = problem(_http_error(error))
        except ClientLeft:
            return
        except Exception:
            _log.exception("request %s %s failed", scope["method"], scope["path"])
            status, headers, body = problem(HttpError(500, "an internal error; the router's log has it"))
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _respond(self, scope: Mapping[str, Any], receive: Receive) -> Response:
        method = scope["method"]
        target = self._infer_paths.get(scope["path"])
        if target is not None and method == "POST":
            return await self._infer(*target, scope, receive)
        path = scope["path"].removeprefix(_prefix(scope))
        parts = path.strip("/").split("/")
        if parts[0] != "v2":
            raise HttpError(404, f"no such path {scope['path']!r}; the protocol's paths begin with /v2")
        if parts[-1] == "infer" and len(parts) in (4, 6):
            http.allow(method, "POST")
            name, variant = _model_path(parts[:-1], scope["path"])
            self._service.model(name, variant)
            if len(self._infer_paths) < _MAX_PATHS:  # a path with more slashes than it needs is one more
                self._infer_paths[scope["path"]] = (name, variant)
            return await self._infer(name, variant, scope, receive)
        if len(parts) == 3 and parts[1] == "requests":
            http.allow(method, "GET", "DELETE")
            return await (self._result(parts[2], scope) if method == "GET" else self._cancel(parts[2]))
        http.allow(method, "GET")
        return self._metadata(parts, scope["path"])

    def _metadata(self, parts: list[str], path: str) -> Response:
        if len(parts) == 1:
            return json_answer(
                200,
                {
                    "name": "hybrid-router",
                    "version": self._version,
                    "extensions": ["binary_tensor_data", "latency_budget", "requests"],
                },
            )
        if parts[1:] == ["health", "live"]:
            return json_answer(200, {"live": True})
        if parts[1:] == ["health", "ready"]:
            ready = self._ready()
            return json_answer(200 if ready else 503, {"ready": ready})
        if parts[1:] == ["models"]:
            return json_answer(200, {"models": [_describe(model) for model in self._service.models.values()]})
        if parts[-1] == "stats" and len(parts) == 4:
            return json_answer(200, self._service.describe_load(_model_path(parts[:-1], path)[0]))
        ready_asked = parts[-1] == "ready"
        name, variant = _model_path(parts[:-1] if ready_asked else parts, path)
        model = self._service.model(name, variant)
        if ready_asked:
            ready = self._ready()
            return json_answer(200 if ready else 503, {"name": name, "ready": ready})
        return json_answer(200, _describe(model, variant))

    async def _infer(
        self, name: str, variant: str | None, scope: Mapping[str, Any], receive: Receive
    ) -> Response:
        model = self._service.model(name, variant)
        headers = http.headers_of(scope)
        policy = self._service.policy
        body = await http.read_body(receive, headers, policy.limits.body)
        request = protocol.decode(body, http.header_length(headers))
        unknown = request.outputs and set(request.outputs) - {spec.name for spec in model.outputs}
        if unknown:
            known = ", ".join(spec.name for spec in model.outputs)
            raise ProtocolError(f"unknown output {min(unknown)!r}; the model gives {known}")
        call = Call(
            name,
            request.inputs,
            http.budget_ms(request.parameters, headers, policy.defaults.budget),
            variant,
            http.hold_s(headers, policy.defaults.hold / 1_000.0),
            http.idempotency_key(headers),
        )
        outcome = await self._service.infer(call)
        if isinstance(outcome, Pending):
            at_once = b"respond-async" in headers.get(b"prefer", b"").lower() and call.hold_s <= 0
            return _accepted(outcome, scope, [(b"preference-applied", b"respond-async")] if at_once else [])
        return _answered(outcome, model.outputs, request)

    async def _result(self, request_id: str, scope: Mapping[str, Any]) -> Response:
        outcome = await self._service.result(request_id, http.wait_s(scope["query_string"]))
        if isinstance(outcome, Pending):
            return _accepted(outcome, scope, [])
        accept = http.headers_of(scope).get(b"accept", b"")
        request = InferRequest({}, request_id, binary=b"application/octet-stream" in accept)
        return _answered(outcome, self._service.model(outcome.model).outputs, request)

    async def _cancel(self, request_id: str) -> Response:
        state = await self._service.cancel(request_id)
        return json_answer(200, {"id": request_id, "state": state.value})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


def _prefix(scope: Mapping[str, Any]) -> str:
    """Where the application is mounted, without a slash at the end."""
    root: str = scope.get("root_path", "")
    return root.rstrip("/")


def _model_path(parts: list[str], path: str) -> tuple[str, str | None]:
    """Model and variant of ``v2/models/{model}[/versions/{variant}]``."""
    if len(parts) == 3 and parts[1] == "models":
        return parts[2], None
    if len(parts) == 5 and parts[1] == "models" and parts[3] == "versions":
        return parts[2], parts[4]
    raise HttpError(404, f"no such path {path!r}; see GET /v2/models")


def _describe(model: ServedModel, variant: str | None = None) -> dict[str, Any]:
    """The protocol's model metadata, and what each variant is."""
    shown = model.variants if variant is None else {variant: model.variants[variant]}
    return {
        "name": model.name,
        "versions": list(shown),
        "platform": "hybrid-router",
        "inputs": [spec.to_json() for spec in model.inputs],
        "outputs": [spec.to_json() for spec in model.outputs],
        "parameters": {
            name: {"runtime": m.runtime, "quality": dict(m.quality), "size_bytes": m.size_bytes}
            for name, m in shown.items()
        },
    }


def _accepted(pending: Pending, scope: Mapping[str, Any], more: Headers) -> Response:
    headers: Headers = [
        *more,
        (b"location", f"{_prefix(scope)}/v2/requests/{pending.id}".encode()),
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
    return json_answer(202, body, headers)


@lru_cache(maxsize=1_000)
def _named(route: str, path: str, variant: str) -> Sequence[tuple[bytes, bytes]]:
    """The headers that do not change from answer to answer."""
    return (b"route", route.encode()), (b"path", path.encode()), (b"variant", variant.encode())


def _answered(answer: Answer, specs: tuple[TensorSpec, ...], request: InferRequest) -> Response:
    parameters: dict[str, Any] = {
        "route": answer.route,
        "path": answer.path,
        "variant": answer.variant,
        "queued_ms": round(answer.queued_ms, 3),
        "deadline_met": answer.deadline_met,
    }
    headers: Headers = [
        *_named(answer.route, answer.path, answer.variant),
        (b"queued-ms", b"%.3f" % answer.queued_ms),
        (b"deadline-met", b"true" if answer.deadline_met else b"false"),
    ]
    if answer.predicted_ms is not None:
        parameters["predicted_ms"] = round(answer.predicted_ms, 3)
        headers.append((b"predicted-ms", b"%.3f" % answer.predicted_ms))
    envelope: dict[str, Any] = {
        "model_name": answer.model,
        "model_version": answer.variant,
        "id": request.id if request.id is not None else answer.id or "",
        "parameters": parameters,
    }
    body, header_length = protocol.encode(
        answer.outputs, specs, wanted=request.outputs, binary=request.binary, envelope=envelope
    )
    if header_length is None:
        return 200, [(b"content-type", http.JSON), *headers], body
    headers.append((_HEADER_LENGTH, b"%d" % header_length))
    return 200, [(b"content-type", b"application/octet-stream"), *headers], body
