"""gRPC in, gRPC out: the Open Inference Protocol over the service, behind Serve's own gRPC server.

A call arrives and leaves as bytes (`RawMessage`), so that size and key are checked before anything is
parsed, and nothing that Serve does with a message depends on its class.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from optimizers.tensors import TensorSpec
from router.ingress.calls import CallHandler, answer_parameters, explained
from router.ingress.codec.protocol import DecodedBody, MalformedRequest
from router.ingress.codec.steps import Steps
from router.ingress.grpc import health, protocol
from router.ingress.grpc.messages import SERVICE, message, parse
from router.ingress.grpc.raw_message import RawMessage
from router.ingress.grpc.statuses import GrpcStatus, StillWaiting, grpc_status
from router.ingress.semantics import HttpError
from router.service.errors import NotPermitted, ServiceError, UnknownModel, UnknownModelVariant
from router.service.readiness import Readiness
from router.service.request_log import RequestLog
from router.service.requests import Answer, InferenceRequest, PendingRequest
from router.service.service import Service
from router.service.trace_context import trace_parent

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
        self._calls = CallHandler(service, log)
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
        self._watchers = 0

    async def call(self, method: str, request: RawMessage, context: CallContext) -> RawMessage:
        """One call. An error is in the context's code, beside an empty message."""
        try:
            self._check_peer(context)
            headers = headers_of(context.invocation_metadata())
            answer = RawMessage(await self._methods[method](request.data, headers))
            trace = trace_parent(headers)
            if trace is not None:
                _trail(context, ("traceparent", trace))
            return answer
        except StillWaiting as error:
            _end(context, grpc_status(error))
        except Exception as error:
            _end(context, grpc_status(explained(error, f"gRPC call {method}")))
        return RawMessage()

    def _check_peer(self, context: CallContext) -> None:
        if not self._admits(context.peer()):
            raise NotPermitted("this server takes calls from its own machine only")

    async def _server_live(self, data: bytes, headers: Headers) -> bytes:
        return _answer("ServerLiveResponse", live=True)

    async def _server_ready(self, data: bytes, headers: Headers) -> bytes:
        return _answer("ServerReadyResponse", ready=self._ready.server())

    async def _server_metadata(self, data: bytes, headers: Headers) -> bytes:
        about = {"name": "hybrid-router", "version": self._version, "extensions": EXTENSIONS}
        return _answer("ServerMetadataResponse", **about)

    async def _check(self, data: bytes, headers: Headers) -> bytes:
        status = health.status(data, self._ready.server())
        if status is health.HealthStatus.SERVICE_UNKNOWN:
            raise HttpError(404, f"no such service here; there is '' and {SERVICE}")
        return health.answer(status)

    async def watch(
        self, request: RawMessage, context: CallContext, every_s: float = 1.0
    ) -> AsyncIterator[RawMessage]:
        """Health as it is now and whenever it changes, until the caller leaves."""
        last = None
        try:
            self._check_peer(context)
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
        except (HttpError, ServiceError, MalformedRequest) as error:
            _end(context, grpc_status(error))

    async def _model_ready(self, data: bytes, headers: Headers) -> bytes:
        self._calls.identify(headers)  # before anything is parsed
        asked = parse("ModelReadyRequest", data)
        try:
            self._calls.model(headers, asked.name, asked.version or None)
        except (UnknownModel, UnknownModelVariant):
            # Triton's answer too: whoever waits for a model asks for it before it is there.
            return _answer("ModelReadyResponse", ready=False)
        return _answer("ModelReadyResponse", ready=self._ready.model(asked.name))

    async def _model_metadata(self, data: bytes, headers: Headers) -> bytes:
        self._calls.identify(headers)  # before anything is parsed
        asked = parse("ModelMetadataRequest", data)
        model = self._calls.model(headers, asked.name, asked.version or None)
        return _answer(
            "ModelMetadataResponse",
            name=model.name,
            versions=[asked.version] if asked.version else list(model.variants),
            platform="hybrid-router",
            inputs=[spec.to_json() for spec in model.inputs],
            outputs=[spec.to_json() for spec in model.outputs],
        )

    async def _model_infer(self, data: bytes, headers: Headers) -> bytes:
        # Serve calls when the whole message is there; nothing says when its first byte came.
        return await self._calls.infer(GrpcTransport(data, headers), self._service.now_ms())


class GrpcTransport:
    """A ModelInfer call of Serve's gRPC server, for `CallHandler.infer`. The message names its model."""

    #: There is no 202 here, and the caller's own deadline ends the wait.
    can_defer = False

    def __init__(self, data: bytes, headers: Headers) -> None:
        self._data, self.headers = data, headers
        self.model = ""
        self.variant: str | None = None

    async def read(self, limit: int) -> Any:
        if len(self._data) > limit:
            size = len(self._data)
            raise HttpError(413, f"the message has {size} bytes, the policy's limits.body is {limit}")
        message = parse("ModelInferRequest", self._data)
        self.model, self.variant = message.model_name, message.model_version or None
        return message

    def decode(self, body: Any, inputs: Sequence[TensorSpec], max_rows: int) -> Steps[DecodedBody]:
        return protocol.decode_steps(body, inputs, max_rows)

    def deferred(self, pending: PendingRequest, request: InferenceRequest) -> bytes:
        raise StillWaiting(pending)

    def answered(
        self, answer: Answer, outputs: Sequence[TensorSpec], body: DecodedBody, request: InferenceRequest
    ) -> Steps[bytes]:
        return protocol.encode_steps(
            answer.outputs,
            outputs,
            body,
            model=self.model,
            variant=answer.variant,
            request_id=body.id or answer.id or "",
            parameters=answer_parameters(answer),
        )


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
