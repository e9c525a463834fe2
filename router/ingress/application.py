"""HTTP in, HTTP out: the Open Inference Protocol over the service.

A bare ASGI application: a framework's routing and validation would cost more than the decision.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from optimizers.tensors import TensorError
from router.call import Call, Pending
from router.ingress import encodings, http, protocol
from router.ingress.answers import accepted, answered, describe, prefix, traced
from router.ingress.http import ClientLeft, Headers, HttpError, Receive, Response, Send, json_answer, problem
from router.ingress.log_lines import failure, success
from router.ingress.protocol import InferRequest, ProtocolError
from router.ingress.reading import BodyReader
from router.ingress.statuses import http_error
from router.request_log import RequestLog
from router.service import Service
from router.service_errors import (
    ServiceError,
)
from router.trace_context import trace_parent

_log = logging.getLogger("ray.serve")


_MAX_PATHS = 1_000


class Ingress:
    """The ASGI application of one router replica."""

    def __init__(
        self,
        service: Service,
        ready: Callable[[], bool],
        version: str,
        policy: Callable[[], Mapping[str, Any]] = dict,
        log: RequestLog | None = None,
    ) -> None:
        self._log = log or RequestLog(lambda: 0.0, _log.info)
        self._service, self._ready, self._version, self._policy = service, ready, version, policy
        self._bodies = BodyReader()
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
            status, headers, body = problem(http_error(error))
        except ClientLeft:
            return
        except Exception:
            _log.exception("request %s %s failed", scope["method"], scope["path"])
            status, headers, body = problem(HttpError(500, "an internal error; the router's log has it"))
        if len(body) >= encodings.WORTH_BYTES:
            body = await http.encoded(body, headers, dict(scope["headers"]))
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _respond(self, scope: Mapping[str, Any], receive: Receive) -> Response:
        method = scope["method"]
        target = self._infer_paths.get(scope["path"])
        if target is not None and method == "POST":
            return await self._infer(*target, scope, receive)
        http.check_path(scope["path"])
        path = scope["path"].removeprefix(prefix(scope))
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
            return await (self._result if method == "GET" else self._cancel)(parts[2], scope)
        http.allow(method, "GET")
        return self._metadata(parts, scope)

    def _tenant(self, headers: Mapping[bytes, bytes]) -> str:
        return self._service.keyring.tenant(headers)

    def _metadata(self, parts: list[str], scope: Mapping[str, Any]) -> Response:
        path = scope["path"]
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
        tenant = self._tenant(http.headers_of(scope))
        if parts[1:] == ["policy"]:
            return json_answer(200, dict(self._policy()))
        if parts[1:] == ["models"]:
            return json_answer(
                200, {"models": [describe(model) for model in self._service.models_of(tenant)]}
            )
        ready_asked, stats_asked = parts[-1] == "ready", parts[-1] == "stats" and len(parts) == 4
        name, variant = _model_path(parts[:-1] if ready_asked or stats_asked else parts, path)
        self._service.permit(tenant, name)
        if stats_asked:
            return json_answer(200, self._service.describe_load(name))
        model = self._service.model(name, variant)
        if ready_asked:
            ready = self._ready()
            return json_answer(200 if ready else 503, {"name": name, "ready": ready})
        return json_answer(200, describe(model, variant))

    async def _infer(
        self, name: str, variant: str | None, scope: Mapping[str, Any], receive: Receive
    ) -> Response:
        headers, started_s = http.headers_of(scope), time.monotonic()
        tenant, counted = "", False
        try:
            tenant = self._tenant(headers)
            self._service.permit(tenant, name)
            counted = self._service.enter(tenant)
            call, request = await self._read(name, variant, tenant, headers, receive)
            outcome = await self._service.infer(call)
        except Exception as error:
            if not isinstance(error, ClientLeft) and self._log.wants(well=False):
                self._log.write(**failure(error, name, tenant, headers, started_s))
            raise
        finally:
            if counted:
                self._service.leave(tenant)
        if self._log.wants(isinstance(outcome, Pending) or outcome.deadline_met):
            self._log.write(**success(outcome, call, request, started_s))
        specs = self._service.model(name).outputs
        if isinstance(outcome, Pending):
            at_once = b"respond-async" in headers.get(b"prefer", b"").lower() and call.hold_s <= 0
            applied: Headers = [(b"preference-applied", b"respond-async")] if at_once else []
            return traced(accepted(outcome, scope, applied), call.trace)
        return traced(answered(outcome, specs, request), call.trace)

    async def _read(
        self, name: str, variant: str | None, tenant: str, headers: Mapping[bytes, bytes], receive: Receive
    ) -> tuple[Call, InferRequest]:
        """The body, as a call for the service and as what the answer must look like."""
        model, policy = self._service.model(name, variant), self._service.policy
        body = await self._bodies.read(receive, headers, policy.limits.body)
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
            tenant,
            headers,
            request.parameters,
            trace_parent(headers),
        )
        return call, request

    async def _result(self, request_id: str, scope: Mapping[str, Any]) -> Response:
        headers = http.headers_of(scope)
        tenant, form = self._tenant(headers), http.result_form(scope["query_string"], headers)
        outcome = await self._service.result(request_id, form.wait_s, tenant=tenant)
        specs = self._service.model(request_id.partition(".")[0]).outputs
        form.check(spec.name for spec in specs)
        if isinstance(outcome, Pending):
            return accepted(outcome, scope, [])
        wanted = dict.fromkeys(form.outputs, form.binary) or None
        request = InferRequest({}, request_id, outputs=wanted, binary=form.binary)
        return traced(answered(outcome, specs, request), outcome.trace)

    async def _cancel(self, request_id: str, scope: Mapping[str, Any]) -> Response:
        tenant = self._tenant(http.headers_of(scope))
        state = await self._service.cancel(request_id, tenant=tenant)
        return json_answer(200, {"id": request_id, "state": state.value})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


def _model_path(parts: list[str], path: str) -> tuple[str, str | None]:
    """Model and variant of ``v2/models/{model}[/versions/{variant}]``."""
    if len(parts) == 3 and parts[1] == "models":
        return parts[2], None
    if len(parts) == 5 and parts[1] == "models" and parts[3] == "versions":
        return parts[2], parts[4]
    raise HttpError(404, f"no such path {path!r}; see GET /v2/models")
