"""HTTP in, HTTP out: the Open Inference Protocol over the service. The only module that knows status codes.

A bare ASGI application: a framework's routing and validation would cost more than the decision.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import orjson

from optimizers.tensors import TensorError, TensorSpec
from router import protocol, units
from router.protocol import HEADER_LENGTH, InferRequest, ProtocolError
from router.service import (
    Answer,
    Call,
    Conflict,
    DeadlinePassed,
    JobEnded,
    Pending,
    Refused,
    ServedModel,
    Service,
    ServiceError,
    TooManyRows,
    Unavailable,
    UnknownModel,
    UnknownRequest,
    UnknownVariant,
)
from workers.job import JobState

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_log = logging.getLogger("ray.serve")
_JSON = b"application/json"
_MAX_WAIT_S = 60.0
_WAIT = re.compile(r"\bwait\s*=\s*([0-9]+)")


class HttpError(Exception):
    """An error with its status, as a problem document (RFC 9457)."""

    def __init__(self, status: int, detail: str, *, headers: Headers | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.members = status, detail, headers or [], members


class ClientLeft(Exception):
    """The connection ended before the body did; there is nobody to answer."""


_TITLES = {
    400: "Malformed request",
    404: "Not found",
    405: "Method not allowed",
    409: "Idempotency key conflict",
    410: "Cancelled",
    413: "Too large",
    415: "Unsupported encoding",
    422: "The request does not fit the model",
    429: "Not admitted",
    500: "Failed",
    503: "Not ready",
    504: "Deadline passed",
}


def _http_error(error: Exception) -> HttpError:
    """The status of each typed error from below."""
    detail = str(error)
    if isinstance(error, Refused):
        if error.kind == "unserved":
            return HttpError(422, detail)
        return HttpError(429, detail, headers=_retry_after(error.retry_after_s), kind=error.kind)
    if isinstance(error, JobEnded):
        status = {JobState.EXPIRED: 504, JobState.CANCELLED: 410, JobState.FAILED: 422}
        state = error.status.state
        return HttpError(status.get(state, 500), detail, state=state.value, id=error.status.id)
    if isinstance(error, Unavailable):
        return HttpError(503, detail, headers=_retry_after(1.0))
    known: dict[type[Exception], int] = {
        ProtocolError: 400,
        TensorError: 422,
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


def _retry_after(seconds: float | None) -> Headers:
    """Whole seconds, rounded up (RFC 9110), and the exact figure beside it."""
    if seconds is None:
        return []
    exact = b"%d" % math.ceil(seconds * 1_000)
    return [(b"retry-after", b"%d" % max(1, math.ceil(seconds))), (b"retry-after-ms", exact)]


class Ingress:
    """The ASGI application of one router replica."""

    def __init__(self, service: Service, ready: Callable[[], bool], version: str) -> None:
        self._service, self._ready, self._version = service, ready, version

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            status, headers, body = await self._respond(scope, receive)
        except HttpError as error:
            status, headers, body = _problem(error)
        except (ServiceError, ProtocolError, TensorError) as error:
            status, headers, body = _problem(_http_error(error))
        except ClientLeft:
            return
        except Exception:
            _log.exception("request %s %s failed", scope["method"], scope["path"])
            status, headers, body = _problem(HttpError(500, "an internal error; the router's log has it"))
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _respond(self, scope: Mapping[str, Any], receive: Receive) -> tuple[int, Headers, bytes]:
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        parts = path.strip("/").split("/")
        method = scope["method"]
        if parts[0] != "v2":
            raise HttpError(404, f"no such path {scope['path']!r}; the protocol's paths begin with /v2")
        if parts[-1] == "infer" and len(parts) in (4, 6):
            _allow(method, "POST")
            name, variant = _model_path(parts[:-1], scope["path"])
            return await self._infer(name, variant, scope, receive)
        if len(parts) == 3 and parts[1] == "requests":
            _allow(method, "GET", "DELETE")
            return await (self._result(parts[2], scope) if method == "GET" else self._cancel(parts[2]))
        _allow(method, "GET")
        return self._metadata(parts, scope["path"])

    def _metadata(self, parts: list[str], path: str) -> tuple[int, Headers, bytes]:
        if len(parts) == 1:
            return _json(
                200,
                {
                    "name": "hybrid-router",
                    "version": self._version,
                    "extensions": ["binary_tensor_data", "latency_budget", "requests"],
                },
            )
        if parts[1:] == ["health", "live"]:
            return _json(200, {"live": True})
        if parts[1:] == ["health", "ready"]:
            ready = self._ready()
            return _json(200 if ready else 503, {"ready": ready})
        if parts[1:] == ["models"]:
            return _json(200, {"models": [_describe(model) for model in self._service.models.values()]})
        if parts[-1] == "stats" and len(parts) == 4:
            return _json(200, self._service.describe_load(parts[2]))
        ready_asked = parts[-1] == "ready"
        name, variant = _model_path(parts[:-1] if ready_asked else parts, path)
        model = self._service.model(name, variant)
        if ready_asked:
            ready = self._ready()
            return _json(200 if ready else 503, {"name": name, "ready": ready})
        return _json(200, _describe(model, variant))

    async def _infer(
        self, name: str, variant: str | None, scope: Mapping[str, Any], receive: Receive
    ) -> tuple[int, Headers, bytes]:
        model = self._service.model(name, variant)
        headers = _headers(scope)
        body = await _body(receive, headers, self._service.policy.limits.body)
        request = protocol.decode(body, _header_length(headers))
        unknown = set(request.outputs or ()) - {spec.name for spec in model.outputs}
        if unknown:
            known = ", ".join(spec.name for spec in model.outputs)
            raise ProtocolError(f"unknown output {min(unknown)!r}; the model gives {known}")
        call = Call(
            name,
            request.inputs,
            self._budget_ms(request, headers),
            variant,
            self._hold_s(headers),
            _key(headers),
        )
        outcome = await self._service.infer(call)
        if isinstance(outcome, Pending):
            return _accepted(outcome, call.hold_s)
        return _answered(outcome, model.outputs, request)

    def _budget_ms(self, request: InferRequest, headers: Mapping[bytes, bytes]) -> float:
        """The latency budget, first found: parameter, header, Triton's ``timeout`` (us), the policy's."""
        parameters = request.parameters
        if "latency_budget_ms" in parameters:
            return _budget(parameters["latency_budget_ms"], "parameter latency_budget_ms", 1.0)
        header = headers.get(b"latency-budget-ms")
        if header is not None:
            try:
                return _budget(float(header), "header Latency-Budget-Ms", 1.0)
            except ValueError:
                raise HttpError(400, f"header Latency-Budget-Ms: {_text(header)!r} is not a number") from None
        if parameters.get("timeout"):
            return _budget(parameters["timeout"], "parameter timeout (microseconds)", 1_000.0)
        return self._service.policy.defaults.budget

    def _hold_s(self, headers: Mapping[bytes, bytes]) -> float:
        """How long to hold a queued request's connection open (RFC 7240)."""
        prefer = _text(headers.get(b"prefer", b"")).lower()
        wait = _WAIT.search(prefer)
        if wait:
            return min(float(wait[1]), _MAX_WAIT_S)
        return 0.0 if "respond-async" in prefer else self._service.policy.defaults.hold / 1_000.0

    async def _result(self, request_id: str, scope: Mapping[str, Any]) -> tuple[int, Headers, bytes]:
        outcome = await self._service.result(request_id, _wait_s(scope["query_string"]))
        if isinstance(outcome, Pending):
            return _accepted(outcome, 0.0)
        accept = _headers(scope).get(b"accept", b"")
        request = InferRequest({}, request_id, binary=b"application/octet-stream" in accept)
        return _answered(outcome, self._service.model(outcome.model).outputs, request)

    async def _cancel(self, request_id: str) -> tuple[int, Headers, bytes]:
        state = await self._service.cancel(request_id)
        return _json(200, {"id": request_id, "state": state.value})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


def _allow(method: str, *allowed: str) -> None:
    if method not in allowed:
        names = ", ".join(allowed)
        raise HttpError(
            405, f"{method} is not allowed here; use {names}", headers=[(b"allow", names.encode())]
        )


def _model_path(parts: list[str], path: str) -> tuple[str, str | None]:
    """Model and variant of ``v2/models/{model}[/versions/{variant}]``."""
    if len(parts) == 3 and parts[1] == "models":
        return parts[2], None
    if len(parts) == 5 and parts[1] == "models" and parts[3] == "versions":
        return parts[2], parts[4]
    raise HttpError(404, f"no such path {path!r}; see GET /v2/models")


def _headers(scope: Mapping[str, Any]) -> dict[bytes, bytes]:
    return dict(scope["headers"])


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _key(headers: Mapping[bytes, bytes]) -> str | None:
    raw = headers.get(b"idempotency-key")
    if raw is None:
        return None
    if not 0 < len(raw) <= 200:
        raise HttpError(400, f"header Idempotency-Key has {len(raw)} characters, 1 to 200 are allowed")
    return _text(raw)


def _budget(value: Any, what: str, per_ms: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise HttpError(400, f"{what}: {value!r} is not a number")
    ms = value / per_ms
    if not 0 < ms <= units.MAX_BUDGET_MS:
        raise HttpError(400, f"{what}: {value!r} is out of range; above 0 and at most 30 days")
    return ms


def _wait_s(query: bytes) -> float:
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if name == b"wait":
            try:
                seconds = float(value)
            except ValueError:
                seconds = math.nan
            if not 0 <= seconds <= _MAX_WAIT_S:
                raise HttpError(400, f"query wait={_text(value)!r} must be 0 to {_MAX_WAIT_S:.0f} seconds")
            return seconds
    return 0.0


def _header_length(headers: Mapping[bytes, bytes]) -> int | None:
    raw = headers.get(HEADER_LENGTH.encode())
    if raw is None:
        return None
    if not raw.isdigit():
        raise ProtocolError(f"header {HEADER_LENGTH}: {_text(raw)!r} is not a whole number")
    return int(raw)


async def _body(receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> bytes:
    """The whole body, refused at the limit before memory is spent on it."""
    encoding = headers.get(b"content-encoding", b"identity").lower()
    if encoding != b"identity":
        raise HttpError(415, f"Content-Encoding {_text(encoding)!r} is not supported; send the body as it is")
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length) > limit:
        raise HttpError(413, f"the body has {int(length)} bytes, the policy's limits.body is {limit}")
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        chunks, size = [message.get("body", b"")], 0
    else:
        chunks, size = [], 0
        while True:
            if message["type"] == "http.disconnect":
                raise ClientLeft
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > limit:
                raise HttpError(413, f"the body is over the policy's limits.body of {limit} bytes")
            if not message.get("more_body"):
                break
            message = await receive()
    body: bytes = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    if len(body) > limit:
        raise HttpError(413, f"the body has {len(body)} bytes, the policy's limits.body is {limit}")
    return body


def _json(status: int, value: Any, headers: Headers | None = None) -> tuple[int, Headers, bytes]:
    return status, [(b"content-type", _JSON), *(headers or [])], orjson.dumps(value)


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


def _accepted(pending: Pending, held_s: float) -> tuple[int, Headers, bytes]:
    headers: Headers = [
        (b"location", f"/v2/requests/{pending.id}".encode()),
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
    if held_s <= 0:
        headers.append((b"preference-applied", b"respond-async"))
    return _json(202, body, headers)


def _answered(
    answer: Answer, specs: tuple[TensorSpec, ...], request: InferRequest
) -> tuple[int, Headers, bytes]:
    parameters: dict[str, Any] = {
        "route": answer.route,
        "path": answer.path,
        "variant": answer.variant,
        "queued_ms": round(answer.queued_ms, 3),
        "deadline_met": answer.deadline_met,
    }
    headers: Headers = [
        (b"route", answer.route.encode()),
        (b"path", answer.path.encode()),
        (b"variant", answer.variant.encode()),
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
        return 200, [(b"content-type", _JSON), *headers], body
    headers.append((HEADER_LENGTH.encode(), b"%d" % header_length))
    return 200, [(b"content-type", b"application/octet-stream"), *headers], body


def _problem(error: HttpError) -> tuple[int, Headers, bytes]:
    body = {
        "type": "about:blank",
        "title": _TITLES.get(error.status, "Failed"),
        "status": error.status,
        "detail": error.detail,
        "error": error.detail,
        **error.members,
    }
    return error.status, [(b"content-type", b"application/problem+json"), *error.headers], orjson.dumps(body)
