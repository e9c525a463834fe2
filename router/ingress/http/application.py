"""HTTP in, HTTP out: the Open Inference Protocol over the service.

A bare ASGI application: a framework's routing and validation would cost more than the decision.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from optimizers.tensors import TensorSpec
from router.ingress import encodings, routes, semantics
from router.ingress.calls import CallHandler, explained
from router.ingress.codec import protocol
from router.ingress.codec.protocol import DecodedBody
from router.ingress.codec.steps import Steps
from router.ingress.http import cross_origin
from router.ingress.http.answers import accepted, answered, describe, prefix
from router.ingress.http.page import Document, Page
from router.ingress.http.reading import BodyReader
from router.ingress.semantics import ClientLeft, Headers, Receive, Response, Send, json_answer, problem
from router.service.readiness import Readiness
from router.service.request_id import RequestId
from router.service.request_log import RequestLog
from router.service.requests import Answer, InferenceRequest, PendingRequest
from router.service.service import Service

Scope = Mapping[str, Any]
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
        self._calls = CallHandler(service, log)
        self._service, self._ready, self._version, self._policy = service, ready, version, policy
        self._bodies = BodyReader()
        self._page, self._document = Page(), Document(version)
        #: Model and variant of the paths that were asked for, which are few and come often.
        self._infer_paths: dict[str, tuple[str, str | None]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
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
        except ClientLeft:
            raise
        except Exception as error:
            return problem(explained(error, f"request {scope['method']} {scope['path']}"))

    def _infer(
        self, model: str, variant: str | None, scope: Scope, receive: Receive, arrived_ms: float
    ) -> Awaitable[Response]:
        return self._calls.infer(HttpTransport(model, variant, scope, receive, self._bodies), arrived_ms)

    async def _respond(self, scope: Scope, receive: Receive, arrived_ms: float) -> Response:
        semantics.check_path(scope["path"])
        path = scope["path"].removeprefix(prefix(scope))
        if scope["method"] == "OPTIONS":
            names = routes.methods(path)
            allowed: Headers = [(b"allow", ", ".join(names).encode())]
            if self._service.policy.cors.origins:
                allowed += cross_origin.preflight(names)
            return 204, allowed, b""
        operation, arguments = routes.find(scope["method"], path)
        name, variant = arguments.get("model", ""), arguments.get("variant")
        match operation:
            case "infer" | "variant_infer":
                self._calls.model(semantics.headers_of(scope), name, variant)
                if len(self._infer_paths) < _MAX_PATHS:  # a path with more slashes than it needs is one more
                    self._infer_paths[scope["path"]] = (name, variant)
                return await self._infer(name, variant, scope, receive, arrived_ms)
            case "result":
                return await self._result(arguments["id"], scope)
            case "cancel":
                return await self._cancel(arguments["id"], scope)
            case "page" | "asset":
                return self._page.answer(arguments.get("asset"), scope)
        return self._metadata(operation, name, variant, scope)

    def _metadata(self, operation: str, name: str, variant: str | None, scope: Scope) -> Response:
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
        headers = semantics.headers_of(scope)
        if operation in ("model_ready", "variant_ready", "model", "variant"):
            # What a client must know before its first request is not counted.
            model = self._calls.model(headers, name, variant)
            if operation in ("model", "variant"):
                return json_answer(200, describe(model, variant))
            ready = self._ready.model(name)
            about = {"name": name, "ready": ready, "queue": self._ready.queue(name)}
            return json_answer(200 if ready else 503, about)
        tenant = self._calls.identify(headers)
        with self._service.counted(tenant):
            return self._described(operation, tenant, name, scope)

    def _described(self, operation: str, tenant: str, name: str, scope: Scope) -> Response:
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

    async def _result(self, request_id: str, scope: Scope) -> Response:
        headers = semantics.headers_of(scope)
        tenant, form = self._calls.identify(headers), semantics.result_form(scope["query_string"], headers)
        # A poll that waits is in flight as long as it does; one that finds no place is answered at once.
        with self._service.counted(tenant, waits=True) as may_wait:
            wait_s = form.wait_s if may_wait else 0.0
            outcome = await self._service.queued.result(request_id, wait_s, tenant=tenant)
        specs = self._service.model(RequestId.parse(request_id).model).outputs
        form.check(spec.name for spec in specs)
        if isinstance(outcome, PendingRequest):
            return accepted(outcome, scope, [])
        wanted = dict.fromkeys(form.outputs, form.binary) or None
        asked = DecodedBody({}, request_id, outputs=wanted, binary=form.binary)
        return await self._calls.turns.run(answered(outcome, specs, asked, outcome.trace))

    async def _cancel(self, request_id: str, scope: Scope) -> Response:
        tenant = self._calls.identify(semantics.headers_of(scope))
        with self._service.counted(tenant):
            state = await self._service.queued.cancel(request_id, tenant=tenant)
        return json_answer(200, {"id": request_id, "state": state.value})


class HttpTransport:
    """An inference request over ASGI, for `CallHandler.infer`. Raises the 431 for too many headers."""

    can_defer = True

    def __init__(
        self, model: str, variant: str | None, scope: Scope, receive: Receive, bodies: BodyReader
    ) -> None:
        self.model, self.variant, self.headers = model, variant, semantics.headers_of(scope)
        self._scope, self._receive, self._bodies = scope, receive, bodies

    async def read(self, limit: int) -> bytes:
        return await self._bodies.read(self._receive, self.headers, limit)

    def decode(self, body: bytes, inputs: Sequence[TensorSpec], max_rows: int) -> Steps[DecodedBody]:
        return protocol.decode_steps(body, semantics.header_length(self.headers), max_rows, inputs)

    def deferred(self, pending: PendingRequest, request: InferenceRequest) -> Response:
        at_once = b"respond-async" in self.headers.get(b"prefer", b"").lower() and request.hold_s <= 0
        applied: Headers = [(b"preference-applied", b"respond-async")] if at_once else []
        return accepted(pending, self._scope, applied, request.trace)

    def answered(
        self, answer: Answer, outputs: Sequence[TensorSpec], body: DecodedBody, request: InferenceRequest
    ) -> Steps[Response]:
        return answered(answer, outputs, body, request.trace)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
