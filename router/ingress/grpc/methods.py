"""gRPC in, gRPC out: the Open Inference Protocol over the service, behind Serve's own gRPC server.

A call arrives and leaves as bytes (`RawMessage`), so that size and key are checked before anything is
parsed, and nothing that Serve does with a message depends on its class.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol

from optimizers.tensors import TensorError, TensorSpec
from router.ingress import semantics
from router.ingress.codec.protocol import InferRequest, InvalidRequest
from router.ingress.codec.steps import Steps
from router.ingress.grpc import health, protocol
from router.ingress.grpc.messages import SERVICE, message
from router.ingress.grpc.protocol import InferMessage
from router.ingress.grpc.raw_message import RawMessage
from router.ingress.grpc.statuses import GrpcStatus, StillWaiting, grpc_status
from router.ingress.log_lines import failure, success
from router.ingress.semantics import HttpError
from router.ingress.turns import Turns
from router.service.errors import NotPermitted, ServiceError, UnknownModel, UnknownModelVariant
from router.service.readiness import Readiness
from router.service.request_log import RequestLog
from router.service.requests import Answer, InferenceRequest, PendingRequest
from router.service.service import Service
from router.service.trace_context import trace_parent

_log = logging.getLogger("ray.serve")

Headers = Mapping[bytes, bytes]
Metadata = list[tuple[str, str]]
EXTENSIONS = ("latency_budget",)
#: Nobody needs a key to watch the health, and each watcher holds a stream open.
_MAX_WATCHERS = 100


class CallContext(Protocol):
    """What is used of `ray.serve.grpc_util.RayServegRPCContext`."""

    def invocation_metadata(self) -> Any: ...
    def peer(self) -> str: ...
    def trailing_metadata(self) -> Any: ...
    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None: ...
    def set_code(self, code: Any) -> None: ...
    def set_details(self, details: str) -> None: ...


def headers_of(metadata: Any) -> dict[bytes, bytes]:
    """A call's metadata, whose names are in lower case, as the HTTP door has its headers."""
    return {
        name.encode(): value if isinstance(value, bytes) else value.encode("latin-1", "replace")
        for name, value in metadata
    }


class GrpcIngress:
    """The protocol's six methods for one router replica, and the health check of gRPC itself.

    ``admits`` says whether a peer may call at all: Serve's gRPC server of a replica listens on every
    interface, whatever the endpoint listens on.
    """

    def __init__(
        self,
        service: Service,
        ready: Readiness,
        version: str,
        log: RequestLog | None = None,
        admits: Callable[[str], bool] = lambda peer: True,
    ) -> None:
        self._log = log or RequestLog(lambda: 0.0, _log.info)
        self._service, self._ready, self._version, self._admits = service, ready, version, admits
        self._methods: dict[str, Callable[[bytes, Headers], Awaitable[bytes]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
            "Check": self._check,
        }
        self._turns, self._watchers = Turns(), 0

    async def call(self, method: str, request: RawMessage, context: CallContext) -> RawMessage:
        """One call. What goes wrong is told by the context's code, with an empty message beside it."""
        try:
            if not self._admits(context.peer()):
                raise NotPermitted("this server takes calls from its own machine only")
            headers = headers_of(context.invocation_metadata())
            answer = RawMessage(await self._methods[method](request.data, headers))
            trace = trace_parent(headers)
            if trace is not None:
                _trail(context, ("traceparent", trace))
            return answer
        except (HttpError, ServiceError, InvalidRequest, TensorError, StillWaiting) as error:
            _end(context, grpc_status(error))
        except Exception:
            _log.exception("gRPC call %s failed", method)
            _end(context, grpc_status(HttpError(500, "an internal error; the router's log has it")))
        return RawMessage()

    def identify(self, headers: Headers) -> str:
        """The tenant that a call acts for, from its metadata: ``authorization: Bearer KEY`` or ``x-api-key``.

        Raises `NotAuthenticated` or `NotPermitted`.
        """
        return self._service.keyring.tenant(headers)

    async def _server_live(self, data: bytes, headers: Headers) -> bytes:
        return _answer("ServerLiveResponse", live=True)

    async def _server_ready(self, data: bytes, headers: Headers) -> bytes:
        return _answer("ServerReadyResponse", ready=self._ready.server())

    async def _server_metadata(self, data: bytes, headers: Headers) -> bytes:
        about = {"name": "hybrid-router", "version": self._version, "extensions": EXTENSIONS}
        return _answer("ServerMetadataResponse", **about)

    async def _check(self, data: bytes, headers: Headers) -> bytes:
        status = health.status(data, self._ready.server())
        if status is health.Status.SERVICE_UNKNOWN:
            raise HttpError(404, f"no such service here; there is '' and {SERVICE}")
        return health.answer(status)

    async def watch(
        self, request: RawMessage, context: CallContext, every_s: float = 1.0
    ) -> AsyncIterator[RawMessage]:
        """Health as it is now and whenever it changes, until the caller leaves."""
        last = None
        try:
            if not self._admits(context.peer()):
                raise NotPermitted("this server takes calls from its own machine only")
            if self._watchers >= _MAX_WATCHERS:
                raise HttpError(429, f"{_MAX_WATCHERS} callers watch the health already; use Check")
            self._watchers += 1
            try:
                while True:
                    status = health.status(request.data, self._ready.server())
                    if status is not last:
                        yield RawMessage(health.answer(status))
                    last = status
                    await asyncio.sleep(every_s)
            finally:
                self._watchers -= 1
        except (HttpError, ServiceError, InvalidRequest) as error:
            _end(context, grpc_status(error))

    async def _model_ready(self, data: bytes, headers: Headers) -> bytes:
        tenant = self.identify(headers)
        asked = protocol.parse("ModelReadyRequest", data)
        self._service.permit(tenant, asked.name)
        try:
            self._service.model(asked.name, asked.version or None)
        except (UnknownModel, UnknownModelVariant):
            # Triton's answer too: whoever waits for a model asks for it before it is there.
            return _answer("ModelReadyResponse", ready=False)
        return _answer("ModelReadyResponse", ready=self._ready.model(asked.name))

    async def _model_metadata(self, data: bytes, headers: Headers) -> bytes:
        tenant = self.identify(headers)
        asked = protocol.parse("ModelMetadataRequest", data)
        self._service.permit(tenant, asked.name)
        model = self._service.model(asked.name, asked.version or None)
        return _answer(
            "ModelMetadataResponse",
            name=model.name,
            versions=[asked.version] if asked.version else list(model.variants),
            platform="hybrid-router",
            inputs=[spec.to_json() for spec in model.inputs],
            outputs=[spec.to_json() for spec in model.outputs],
        )

    async def _model_infer(self, data: bytes, headers: Headers) -> bytes:
        # Nothing tells when the first byte of the message came: Serve calls when all of it is there.
        arrived_ms, started_s, tenant, model = self._service.now_ms(), time.monotonic(), "", ""
        try:
            tenant = self.identify(headers)
            with self._service.counted(tenant):
                parsed = self._parse(data)
                model = parsed.model_name
                asked = await self._turns.run(self._decode(parsed, tenant))
                call = self._call(asked, tenant, headers, arrived_ms)
                outcome = await self._service.infer(call)
        except Exception as error:
            if self._log.wants(well=False):
                self._log.write(**failure(error, model, tenant, headers, started_s))
            raise
        if self._log.wants(isinstance(outcome, PendingRequest) or outcome.deadline_met):
            self._log.write(**success(outcome, call, InferRequest({}, asked.id), started_s))
        if isinstance(outcome, PendingRequest):
            raise StillWaiting(outcome)
        return await self._turns.run(
            protocol.encode_steps(
                outcome.outputs,
                self._service.model(model).outputs,
                asked,
                variant=outcome.variant,
                request_id=asked.id or outcome.id or "",
                parameters=_told(outcome),
            )
        )

    def _parse(self, data: bytes) -> Any:
        limit = self._service.policy.limits.body
        if len(data) > limit:
            raise HttpError(413, f"the message has {len(data)} bytes, the policy's limits.body is {limit}")
        return protocol.parse("ModelInferRequest", data)

    def _decode(self, parsed: Any, tenant: str) -> Steps[InferMessage]:
        def inputs_of(model: str, variant: str | None) -> tuple[TensorSpec, ...]:
            self._service.permit(tenant, model)
            return self._service.model(model, variant).inputs

        return protocol.decode_steps(parsed, inputs_of, self._service.policy.limits.rows)

    def _call(
        self, asked: InferMessage, tenant: str, headers: Headers, arrived_ms: float
    ) -> InferenceRequest:
        model = self._service.model(asked.model, asked.variant)
        unknown = (asked.outputs or frozenset()) - {spec.name for spec in model.outputs}
        if unknown:
            known = ", ".join(spec.name for spec in model.outputs)
            raise InvalidRequest(f"unknown output {min(unknown)!r}; the model gives {known}")
        budget_ms = semantics.budget_ms(asked.parameters, headers, self._service.policy.defaults.budget)
        return InferenceRequest(
            asked.model,
            asked.inputs,
            budget_ms,
            asked.variant,
            # There is no 202 here, and the caller's own deadline ends the wait: hold for all of the budget.
            semantics.hold_s(headers, min(budget_ms / 1_000.0, semantics.MAX_WAIT_S)),
            semantics.idempotency_key(headers),
            tenant,
            headers,
            asked.parameters,
            trace_parent(headers),
            arrived_ms,
        )


def _told(answer: Answer) -> dict[str, Any]:
    """How the answer was made, in the names that HTTP gives."""
    told: dict[str, Any] = {
        "route": answer.route,
        "path": answer.path,
        "variant": answer.variant,
        "queued_ms": round(answer.queued_ms, 3),
        "deadline_met": answer.deadline_met,
    }
    if answer.predicted_ms is not None:
        told["predicted_ms"] = round(answer.predicted_ms, 3)
    return told


def _answer(kind: str, /, **fields: Any) -> bytes:
    encoded: bytes = message(kind)(**fields).SerializeToString()
    return encoded


def _end(context: CallContext, status: GrpcStatus) -> None:
    context.set_code(status.code)
    context.set_details(status.detail)
    _trail(context, *status.trailing)


def _trail(context: CallContext, *pairs: tuple[str, str]) -> None:
    """More metadata behind the answer; Serve has put its request id there."""
    context.set_trailing_metadata([*context.trailing_metadata(), *pairs])


class GrpcMethods:
    """Mixed into the router's deployment: Serve calls a gRPC method by its name there.

    The argument's name ``grpc_context`` is how Serve knows that the method wants it.
    """

    grpc: GrpcIngress

    async def ServerLive(self, request: RawMessage, grpc_context: CallContext) -> RawMessage:
        return await self.grpc.call("ServerLive", request, grpc_context)

    async def ServerReady(self, request: RawMessage, grpc_context: CallContext) -> RawMessage:
        return await self.grpc.call("ServerReady", request, grpc_context)

    async def ModelReady(self, request: RawMessage, grpc_context: CallContext) -> RawMessage:
        return await self.grpc.call("ModelReady", request, grpc_context)

    async def ServerMetadata(self, request: RawMessage, grpc_context: CallContext) -> RawMessage:
        return await self.grpc.call("ServerMetadata", request, grpc_context)

    async def ModelMetadata(self, request: RawMessage, grpc_context: CallContext) -> RawMessage:
        return await self.grpc.call("ModelMetadata", request, grpc_context)

    async def ModelInfer(self, request: RawMessage, grpc_context: CallContext) -> RawMessage:
        return await self.grpc.call("ModelInfer", request, grpc_context)

    async def Check(self, request: RawMessage, grpc_context: CallContext) -> RawMessage:
        return await self.grpc.call("Check", request, grpc_context)

    async def Watch(self, request: RawMessage, grpc_context: CallContext) -> AsyncIterator[RawMessage]:
        async for answer in self.grpc.watch(request, grpc_context):
            yield answer
