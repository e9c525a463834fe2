"""One inference request, from a door to its answer: what HTTP and gRPC both do.

A door brings a `Transport`: a request's headers, its body, and how to write an answer. The rest happens here,
in this order: identify, permit, admit, read, infer, log, answer. A new door needs none of this logic.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from optimizers.tensors import TensorError, TensorSpec
from router.ingress import semantics
from router.ingress.codec.protocol import DecodedBody, MalformedRequest
from router.ingress.codec.steps import Steps
from router.ingress.log_lines import failure, success
from router.ingress.semantics import ClientLeft, HttpError
from router.ingress.statuses import http_error
from router.ingress.turns import Turns
from router.service.errors import ServiceError
from router.service.request_log import RequestLog
from router.service.requests import Answer, InferenceRequest, PendingRequest, ServedModel
from router.service.service import Service
from router.service.trace_context import trace_parent

_log = logging.getLogger("ray.serve")
R = TypeVar("R", covariant=True)


class Transport(Protocol[R]):
    """One request as its door holds it. ``R`` is an answer as the door sends it.

    Names in ``headers`` are in lower case. ``model`` and ``variant`` are what the request addresses; where
    the body names them, ``model`` is empty until `read` has set both. ``can_defer`` says whether the door can
    answer before the result is there (HTTP's 202). If not, the call waits as long as the budget lasts.
    """

    @property
    def headers(self) -> Mapping[bytes, bytes]: ...
    @property
    def model(self) -> str: ...
    @property
    def variant(self) -> str | None: ...
    @property
    def can_defer(self) -> bool: ...

    async def read(self, limit: int) -> Any:
        """The body, of at most ``limit`` bytes, in the form that `decode` takes. Raises `HttpError`."""

    def decode(self, body: Any, inputs: Sequence[TensorSpec], max_rows: int) -> Steps[DecodedBody]:
        """The body's tensors, ids and parameters. Raises `MalformedRequest`, `TooManyRows`, `TensorError`."""

    def deferred(self, pending: PendingRequest, request: InferenceRequest) -> R:
        """The answer to a request that still waits in the queue."""

    def answered(
        self, answer: Answer, outputs: Sequence[TensorSpec], body: DecodedBody, request: InferenceRequest
    ) -> Steps[R]:
        """The answer with a result."""


class CallHandler:
    """Takes requests from one door to the service and back. ``log`` gets a line of each."""

    def __init__(self, service: Service, log: RequestLog | None = None) -> None:
        self._service = service
        self._log = log or RequestLog(lambda: 0.0, _log.info)
        self.turns = Turns()

    def identify(self, headers: Mapping[bytes, bytes]) -> str:
        """The tenant that a request acts for, by its ``authorization: Bearer KEY`` or ``x-api-key``.

        Raises `NotAuthenticated` or `NotPermitted`.
        """
        return self._service.keyring.tenant(headers)

    def model(self, headers: Mapping[bytes, bytes], name: str, variant: str | None) -> ServedModel:
        """The model that a request asks about. Which models exist is told only to those who may use them.

        Raises what `identify` raises, `NotPermitted`, `UnknownModel` and `UnknownModelVariant`.
        """
        self._service.permit(self.identify(headers), name)
        return self._service.model(name, variant)

    async def infer(self, transport: Transport[R], arrived_ms: float) -> R:
        """The answer to an inference request that arrived at ``arrived_ms`` on the service's clock."""
        service, headers, started_s, tenant = self._service, transport.headers, time.monotonic(), ""
        try:
            tenant = self.identify(headers)
            if transport.model:
                service.permit(tenant, transport.model)
            with service.counted(tenant):
                raw = await transport.read(service.policy.limits.body)
                service.permit(tenant, transport.model)  # a body that names its model has done so now
                model = service.model(transport.model, transport.variant)
                steps = transport.decode(raw, model.inputs, service.policy.limits.rows)
                body = await self.turns.run(steps)
                request = self._request(transport, body, model, tenant, arrived_ms)
                outcome = await service.infer(request)
        except ClientLeft:
            raise
        except Exception as error:
            if self._log.wants(well=False):
                self._log.write(**failure(error, transport.model, tenant, headers, started_s))
            raise
        if self._log.wants(isinstance(outcome, PendingRequest) or outcome.deadline_met):
            self._log.write(**success(outcome, request, body.id, started_s))
        if isinstance(outcome, PendingRequest):
            return transport.deferred(outcome, request)
        return await self.turns.run(transport.answered(outcome, model.outputs, body, request))

    def _request(
        self, transport: Transport[R], body: DecodedBody, model: ServedModel, tenant: str, arrived_ms: float
    ) -> InferenceRequest:
        headers, defaults = transport.headers, self._service.policy.defaults
        if body.outputs:
            unknown = set(body.outputs) - {spec.name for spec in model.outputs}
            if unknown:
                known = ", ".join(spec.name for spec in model.outputs)
                raise MalformedRequest(f"unknown output {min(unknown)!r}; the model gives {known}")
        budget_ms = semantics.budget_ms(body.parameters, headers, defaults.budget)
        hold_ms = defaults.hold if transport.can_defer else min(budget_ms, semantics.MAX_WAIT_S * 1_000.0)
        return InferenceRequest(
            transport.model,
            body.inputs,
            budget_ms,
            transport.variant,
            semantics.hold_s(headers, hold_ms / 1_000.0),
            semantics.idempotency_key(headers),
            tenant,
            headers,
            body.parameters,
            trace_parent(headers),
            arrived_ms,
        )


def explained(error: Exception, call: str) -> HttpError:
    """The error as a caller sees it. An unexpected one is logged with its traceback and gives no details."""
    if isinstance(error, HttpError | ServiceError | MalformedRequest | TensorError):
        return http_error(error)
    _log.exception("%s failed", call)
    return HttpError(500, "an internal error; the router's log has it")


def answer_parameters(answer: Answer) -> dict[str, Any]:
    """How an answer was made, in the names that every door uses."""
    parameters: dict[str, Any] = {
        "route": answer.route,
        "path": answer.path,
        "variant": answer.variant,
        "queued_ms": round(answer.queued_ms, 3),
        "deadline_met": answer.deadline_met,
    }
    if answer.predicted_ms is not None:
        parameters["predicted_ms"] = round(answer.predicted_ms, 3)
    return parameters
