"""HTTP in, HTTP out: the Open Inference Protocol over the service.

A bare ASGI application: a framework's routing and validation would cost more than the decision.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from optimizers.tensors import TensorError
from router.ingress import encodings, routes, semantics
from router.ingress.codec import protocol
from router.ingress.codec.protocol import InferRequest, InvalidRequest
from router.ingress.http import cross_origin
from router.ingress.http.answers import accepted, answered, describe, prefix, traced
from router.ingress.http.page import Document, Page
from router.ingress.http.reading import BodyReader
from router.ingress.log_lines import failure, success
from router.ingress.semantics import (
    ClientLeft,
    Headers,
    HttpError,
    Receive,
    Response,
    Send,
    json_answer,
    problem,
)
from router.ingress.statuses import http_error
from router.ingress.turns import Turns
from router.service.errors import ServiceError
from router.service.readiness import Readiness
from router.service.request_log import RequestLog
from router.service.requests import InferenceRequest, PendingRequest
from router.service.service import Service
from router.service.trace_context import trace_parent

_log = logging.getLogger("ray.serve")


_MAX_PATHS = 1_000


class Ingress:
    """The ASGI application of one router replica."""

    def __init__(
        self,
        service: Service,
        ready: Readiness,
        version: str,
        policy: Callable[[], Mapping[str, Any]] = dict,
        log: RequestLog | None = None,
    ) -> None:
        self._log = log or RequestLog(lambda: 0.0, _log.info)
        self._service, self._ready, self._version, self._policy = service, ready, version, policy
        self._bodies, self._turns = BodyReader(), Turns()
        self._page, self._document = Page(), Document(version)
        #: Model and variant of the paths that were asked for, which are few and come often.
        self._infer_paths: dict[str, tuple[str, str | None]] = {}

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            status, headers, body = await self._answer(scope, receive)
        except ClientLeft:
            return
        cross_origin.add_to(headers, scope, self._service.policy.cors)
        if status not in (204, 304):  # the one has no body, and the other's length would be that of the copy
            headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: Mapping[str, Any], receive: Receive) -> Response:
        """The answer, whatever happens. Raises `ClientLeft` where there is nobody to answer."""
        arrived_ms = self._service.now_ms()
        target = self._infer_paths.get(scope["path"])
        try:
            if target is not None and scope["method"] == "POST":
                answer = await self._infer(*target, scope, receive, arrived_ms)
            else:
                answer = await self._respond(scope, receive, arrived_ms)
            if len(answer[2]) >= encodings.WORTH_BYTES:
                return await semantics.encoded(answer, dict(scope["headers"]))
            return answer
        except HttpError as error:
            return problem(error)
        except (ServiceError, InvalidRequest, TensorError) as error:
            return problem(http_error(error))
        except ClientLeft:
            raise
        except Exception:
            _log.exception("request %s %s failed", scope["method"], scope["path"])
            return problem(HttpError(500, "an internal error; the router's log has it"))

    async def _respond(self, scope: Mapping[str, Any], receive: Receive, arrived_ms: float) -> Response:
        semantics.check_path(scope["path"])
        path = scope["path"].removeprefix(prefix(scope))
        if scope["method"] == "OPTIONS":
            names = routes.methods(path)
            allowed: Headers = [(b"allow", ", ".join(names).encode())]
            if self._service.policy.cors.origins:
                allowed += cross_origin.preflight(names)
            return 204, allowed, b""
        found = routes.find(scope["method"], path)
        name, variant = found.arguments.get("model", ""), found.arguments.get("variant")
        match found.operation:
            case "infer" | "variant_infer":
                # First who asks: which models there are is told to those who may use them.
                self._service.permit(self._tenant(semantics.headers_of(scope)), name)
                self._service.model(name, variant)
                if len(self._infer_paths) < _MAX_PATHS:  # a path with more slashes than it needs is one more
                    self._infer_paths[scope["path"]] = (name, variant)
                return await self._infer(name, variant, scope, receive, arrived_ms)
            case "result":
                return await self._result(found.arguments["id"], scope)
            case "cancel":
                return await self._cancel(found.arguments["id"], scope)
            case "page" | "asset":
                return self._page.answer(found.arguments.get("asset"), scope)
        return self._metadata(found.operation, name, variant, scope)

    def _tenant(self, headers: Mapping[bytes, bytes]) -> str:
        return self._service.keyring.tenant(headers)

    def _metadata(self, operation: str, name: str, variant: str | None, scope: Mapping[str, Any]) -> Response:
        if operation == "server":
            return json_answer(
                200,
                {
                    "name": "hybrid-router",
                    "version": self._version,
                    "extensions": ["binary_tensor_data", "latency_budget", "requests"],
                },
            )
        if operation == "live":
            return json_answer(200, {"live": True})
        if operation == "ready":
            ready = self._ready.server()
            return json_answer(200 if ready else 503, {"ready": ready, "queues": self._ready.queues()})
        tenant = self._tenant(semantics.headers_of(scope))
        if operation in ("model_ready", "variant_ready", "model", "variant"):
            # What a client must know before its first request is not counted.
            self._service.permit(tenant, name)
            model = self._service.model(name, variant)
            if operation in ("model", "variant"):
                return json_answer(200, describe(model, variant))
            ready = self._ready.model(name)
            about = {"name": name, "ready": ready, "queue": self._ready.queue(name)}
            return json_answer(200 if ready else 503, about)
        with self._service.counted(tenant):
            return self._described(operation, tenant, name, scope)

    def _described(self, operation: str, tenant: str, name: str, scope: Mapping[str, Any]) -> Response:
        if operation == "policy":
            return json_answer(200, dict(self._policy()))
        if operation == "models":
            return json_answer(
                200, {"models": [describe(model) for model in self._service.models_of(tenant)]}
            )
        if operation == "openapi":
            return self._document.answer(self._service.models_of(tenant), self._service.policy, scope)
        self._service.permit(tenant, name)
        return json_answer(200, self._service.describe_load(name))

    async def _infer(
        self, name: str, variant: str | None, scope: Mapping[str, Any], receive: Receive, arrived_ms: float
    ) -> Response:
        headers, started_s, tenant = semantics.headers_of(scope), time.monotonic(), ""
        try:
            tenant = self._tenant(headers)
            self._service.permit(tenant, name)
            with self._service.counted(tenant):
                body = await self._bodies.read(receive, headers, self._service.policy.limits.body)
                call, request = await self._read(name, variant, tenant, headers, body, arrived_ms)
                outcome = await self._service.infer(call)
        except Exception as error:
            if not isinstance(error, ClientLeft) and self._log.wants(well=False):
                self._log.write(**failure(error, name, tenant, headers, started_s))
            raise
        if self._log.wants(isinstance(outcome, PendingRequest) or outcome.deadline_met):
            self._log.write(**success(outcome, call, request, started_s))
        specs = self._service.model(name).outputs
        if isinstance(outcome, PendingRequest):
            at_once = b"respond-async" in headers.get(b"prefer", b"").lower() and call.hold_s <= 0
            applied: Headers = [(b"preference-applied", b"respond-async")] if at_once else []
            return traced(accepted(outcome, scope, applied), call.trace)
        return traced(await self._turns.run(answered(outcome, specs, request)), call.trace)

    async def _read(
        self,
        name: str,
        variant: str | None,
        tenant: str,
        headers: Mapping[bytes, bytes],
        body: bytes,
        arrived_ms: float,
    ) -> tuple[InferenceRequest, InferRequest]:
        """The body, as a call for the service and as what the answer must look like."""
        model, policy = self._service.model(name, variant), self._service.policy
        length, rows = semantics.header_length(headers), policy.limits.rows
        request = await self._turns.run(protocol.decode_steps(body, length, rows, model.inputs))
        if request.outputs:
            unknown = set(request.outputs) - {spec.name for spec in model.outputs}
            if unknown:
                known = ", ".join(spec.name for spec in model.outputs)
                raise InvalidRequest(f"unknown output {min(unknown)!r}; the model gives {known}")
        call = InferenceRequest(
            name,
            request.inputs,
            semantics.budget_ms(request.parameters, headers, policy.defaults.budget),
            variant,
            semantics.hold_s(headers, policy.defaults.hold / 1_000.0),
            semantics.idempotency_key(headers),
            tenant,
            headers,
            request.parameters,
            trace_parent(headers),
            arrived_ms,
        )
        return call, request

    async def _result(self, request_id: str, scope: Mapping[str, Any]) -> Response:
        headers = semantics.headers_of(scope)
        tenant, form = self._tenant(headers), semantics.result_form(scope["query_string"], headers)
        # A poll that waits is in flight as long as it does; one that finds no place is answered at once.
        with self._service.counted(tenant, waits=True) as may_wait:
            wait_s = form.wait_s if may_wait else 0.0
            outcome = await self._service.queued.result(request_id, wait_s, tenant=tenant)
        specs = self._service.model(request_id.partition(".")[0]).outputs
        form.check(spec.name for spec in specs)
        if isinstance(outcome, PendingRequest):
            return accepted(outcome, scope, [])
        wanted = dict.fromkeys(form.outputs, form.binary) or None
        request = InferRequest({}, request_id, outputs=wanted, binary=form.binary)
        return traced(await self._turns.run(answered(outcome, specs, request)), outcome.trace)

    async def _cancel(self, request_id: str, scope: Mapping[str, Any]) -> Response:
        tenant = self._tenant(semantics.headers_of(scope))
        with self._service.counted(tenant):
            state = await self._service.queued.cancel(request_id, tenant=tenant)
        return json_answer(200, {"id": request_id, "state": state.value})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
