"""The queued half of the service: submit a job, wait for it, ask for it later, cancel it, watch queues."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping

from optimizers.tensors import pack, unpack
from router.call import Answer, Call, Pending, ServedModel
from router.decide import Enqueue
from router.metrics import Recorder
from router.policy import Policy
from router.service_errors import Conflict, JobEnded, Refused, Unavailable, UnknownRequest
from workers.job import JobState, JobStatus, NewJob
from workers.queue import Accepted, DeadlineQueue, Full, KeyConflict, QueueError


class Queued:
    """Requests that wait in the models' queues. ``policy`` gives the policy in force."""

    def __init__(
        self, models: Mapping[str, ServedModel], recorder: Recorder, policy: Callable[[], Policy]
    ) -> None:
        self._models, self._recorder, self._policy = models, recorder, policy

    async def submit(
        self, served: ServedModel, call: Call, decision: Enqueue, rows: int, left_ms: float
    ) -> Answer | Pending:
        """Queue the request with what is left of its budget, and wait for its end while its caller holds.

        Raises `Refused` where the queue is full, `Conflict`, and `Unavailable`.
        """
        assert served.queue is not None
        batch = self._policy().models[served.name].batch
        job = NewJob(
            # The route stands in the id: a caller who asks later is told it, and a retry that finds the first
            # job by its key is told the first one's.
            id=f"{served.name}.{decision.route}.{secrets.token_hex(12)}",
            payload=pack(call.inputs),
            rows=rows,
            budget_ms=max(1, round(left_ms)),
            tenant=call.tenant,
            trace=call.trace,
            variant=decision.variant,
            key=call.key,
            max_attempts=batch.max_attempts if batch else 1,
        )
        try:
            (submitted,) = await served.queue.submit([job])
        except QueueError as error:
            self._recorder.request(served.name, decision.route, "batch", "", "failed")
            raise Unavailable(f"the queue cannot take the request now: {error}") from None
        if isinstance(submitted, Full):
            self._recorder.request(served.name, decision.route, "batch", "", "refused")
            wait_s = submitted.retry_after_ms / 1_000.0
            raise Refused(f"the queue is full ({submitted.what})", "full", wait_s)
        if isinstance(submitted, KeyConflict):
            raise Conflict(f"the Idempotency-Key was used for other content, by request {submitted.first_id}")
        return await self._hold(served, call, decision, submitted)

    async def _hold(
        self, served: ServedModel, call: Call, decision: Enqueue, submitted: Accepted
    ) -> Answer | Pending:
        self._recorder.request(served.name, decision.route, "batch", decision.variant or "", "accepted")
        self._recorder.tenant(call.tenant, "accepted")
        pending = Pending(submitted.id, decision.route, JobState.PENDING, decision.predicted_ms)
        if call.hold_s <= 0:
            return pending
        try:
            return await self.result(
                submitted.id, call.hold_s, tenant=call.tenant, predicted_ms=decision.predicted_ms
            )
        except Unavailable:
            # It is accepted, and its id is known only here: the caller can ask again by it.
            return pending
        except asyncio.CancelledError:
            # Nobody else knows this id: unless a retry can come back by its key, nobody can ask for it.
            if call.key is None and served.queue is not None:
                with contextlib.suppress(QueueError):
                    await asyncio.shield(served.queue.cancel(submitted.id))
            raise

    def _queue_of(self, request_id: str) -> tuple[ServedModel, DeadlineQueue]:
        served = self._models.get(request_id.partition(".")[0])
        if served is None or served.queue is None:
            raise UnknownRequest(f"no request {request_id!r} here")
        return served, served.queue

    async def result(
        self,
        request_id: str,
        wait_s: float = 0.0,
        *,
        tenant: str = "",
        predicted_ms: float | None = None,
    ) -> Answer | Pending:
        """What became of a tenant's queued request, waiting up to ``wait_s`` for its end.

        Raises `UnknownRequest`, also for another's, and `JobEnded` for one that ended without a result.
        """
        served, queue = self._queue_of(request_id)
        try:
            status = await queue.state(request_id)
            if status is not None and status.tenant != tenant:
                status = None  # that another tenant's request exists is not told either
            if status is not None and not status.state.terminal and wait_s > 0:
                ended = await queue.wait([request_id], wait_s)
                status = ended[0] if ended else await queue.state(request_id)
        except QueueError as error:
            raise Unavailable(f"the queue cannot be asked now: {error}") from None
        if status is None:
            raise UnknownRequest(f"no request {request_id!r}: unknown, or its result was removed by age")
        return self._told(served, status, predicted_ms)

    def _told(self, served: ServedModel, status: JobStatus, predicted_ms: float | None) -> Answer | Pending:
        _, _, tail = status.id.partition(".")
        route, _, _ = tail.rpartition(".")
        if not status.state.terminal:
            return Pending(status.id, route, status.state, predicted_ms)
        if status.state is not JobState.DONE or status.result is None:
            raise JobEnded(status)
        outputs, _ = unpack(status.result)
        batch = self._policy().models[served.name].batch
        return Answer(
            status.id,
            outputs,
            served.name,
            status.variant or (batch.variant if batch else ""),
            route,
            "batch",
            predicted_ms,
            float(status.queued_ms or 0),
            bool(status.met),
            status.trace,
        )

    async def cancel(self, request_id: str, *, tenant: str = "") -> JobState:
        """Cancel a tenant's queued request; the state it is in now. Raises `UnknownRequest`."""
        _, queue = self._queue_of(request_id)
        try:
            status = await queue.state(request_id)
            mine = status is not None and status.tenant == tenant
            state = await queue.cancel(request_id) if mine else None
        except QueueError as error:
            raise Unavailable(f"the queue cannot be asked now: {error}") from None
        if state is None:
            raise UnknownRequest(f"no request {request_id!r}: unknown, or removed by age")
        return state

    async def watch(self, every_s: float = 0.5) -> None:
        """Keep each model's queue statistics fresh, for decisions and metrics, until cancelled."""
        while True:
            for served in self._models.values():
                if served.queue is None:
                    continue
                try:
                    await served.queue.reap()  # with its workers scaled to zero there is nobody else
                    served.stats = await served.queue.stats()
                    self._recorder.queue(served.name, served.stats)
                except QueueError:
                    served.stats = None
            await asyncio.sleep(every_s)
