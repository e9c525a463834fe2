"""The queued half of the service: submit a job, wait for it, ask for it later, cancel it, watch queues.

A submit without an answer may have been applied. Nobody was given its job's id: without an idempotency key
the job is cancelled once the queue answers again, and runs for nobody only where a worker was faster. With a
key it stays, since a retry under that key is answered by it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping

from optimizers.tensors import pack, unpack
from router.policy import Policy
from router.scheduling.admission import Enqueue
from router.scheduling.tuning import STATS_VALID_MS
from router.service.errors import Conflict, JobEnded, Refused, Unavailable, UnknownRequest
from router.service.metrics import Recorder
from router.service.request_id import RequestId
from router.service.requests import Answer, InferenceRequest, PendingRequest, ServedModel
from workers.queue.contract import Accepted, DeadlineQueue, Full, KeyConflict, QueueError, Submitted
from workers.queue.job import JobState, JobStatus, NewJob

#: Reading the statistics has failed after so long: by then the last ones are too old as well.
_STATS_WITHIN_S = STATS_VALID_MS / 1_000.0
_LEAST_PAUSE_S = 0.05
#: How many jobs are kept to be cancelled once the queue answers again.
_MOST_ABANDONED = 10_000


class NotQueued(Exception):
    """The queue did not take a job in time, as far as is known: it may have, without an answer."""


class QueuedRequests:
    """Requests that wait in the models' queues. ``policy`` gives the policy in force, ``clock`` ms."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        recorder: Recorder,
        policy: Callable[[], Policy],
        clock: Callable[[], float],
    ) -> None:
        self._models, self._recorder, self._policy, self._clock = models, recorder, policy, clock
        self._abandoned: dict[str, deque[str]] = {name: deque(maxlen=_MOST_ABANDONED) for name in models}

    async def submit(
        self, served: ServedModel, request: InferenceRequest, decision: Enqueue, rows: int, left_ms: float
    ) -> Answer | PendingRequest:
        """Queue the request with what is left of its budget, and wait for its end while its caller holds.

        Raises `NotQueued`, which is not counted yet; `Refused` where the queue is full; and `Conflict`.
        """
        assert served.queue is not None
        batch = self._policy().models[served.name].batch
        job = NewJob(
            id=str(RequestId.new(served.name, decision.route)),
            payload=pack(request.inputs),
            rows=rows,
            budget_ms=max(1, round(left_ms)),
            tenant=request.tenant,
            trace=request.trace,
            variant=decision.variant,
            key=request.key,
            max_attempts=batch.max_attempts if batch else 1,
        )
        begun = self._clock()
        try:
            submitted = await self._submit(served, served.queue, job, decision.patience_ms)
        except asyncio.CancelledError:
            self._recorder.request(served.name, decision.route, "batch", "", "left", request.tenant)
            raise
        outcome = "conflict" if isinstance(submitted, KeyConflict) else "refused"
        if isinstance(submitted, Accepted):
            outcome = "accepted"
        variant = (decision.variant or "") if outcome == "accepted" else ""
        self._recorder.request(served.name, decision.route, "batch", variant, outcome, request.tenant)
        if isinstance(submitted, Full):
            wait_s = submitted.retry_after_ms / 1_000.0
            raise Refused(f"the queue is full ({submitted.what})", "full", wait_s)
        if isinstance(submitted, KeyConflict):
            raise Conflict(f"the Idempotency-Key was used for other content, by request {submitted.first_id}")
        return await self._hold(served, request, decision, submitted, begun)

    async def _submit(
        self, served: ServedModel, queue: DeadlineQueue, job: NewJob, patience_ms: float | None
    ) -> Submitted:
        within_ms = None if patience_ms is None else max(1, int(patience_ms))
        try:
            # The queue keeps to its time between two calls; this bounds the call as well.
            async with asyncio.timeout(within_ms and within_ms * 1.2 / 1_000.0):
                (submitted,) = await queue.submit([job], within_ms=within_ms)
        except (QueueError, TimeoutError) as error:
            if isinstance(error, QueueError):
                served.stats = None  # as much as missing statistics say
            self._abandon(served, job)
            raise NotQueued(str(error) or "no answer in time") from None
        except asyncio.CancelledError:
            self._abandon(served, job)
            raise
        return submitted

    def _abandon(self, served: ServedModel, job: NewJob) -> None:
        if job.key is None:
            self._abandoned[served.name].append(job.id)

    async def _hold(
        self,
        served: ServedModel,
        request: InferenceRequest,
        decision: Enqueue,
        submitted: Accepted,
        begun: float,
    ) -> Answer | PendingRequest:
        pending = PendingRequest(submitted.id, decision.route, JobState.PENDING, decision.predicted_ms)
        if request.hold_s <= 0:
            return pending
        try:
            answer = await self.result(
                submitted.id, request.hold_s, tenant=request.tenant, predicted_ms=decision.predicted_ms
            )
        except Unavailable:
            # It is accepted, and its id is known only here: the caller can ask again by it.
            return pending
        except asyncio.CancelledError:
            # Nobody else knows this id: unless a retry can come back by its key, nobody can ask for it.
            if request.key is None and served.queue is not None:
                with contextlib.suppress(QueueError):
                    await asyncio.shield(served.queue.cancel(submitted.id))
            raise
        if isinstance(answer, Answer) and not submitted.duplicate:
            served.queue_ms.add(self._clock() - begun)
        return answer

    def _queue_of(self, request_id: str) -> tuple[ServedModel, DeadlineQueue]:
        served = self._models.get(RequestId.parse(request_id).model)
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
    ) -> Answer | PendingRequest:
        """What became of a tenant's queued request, waiting up to ``wait_s`` for its end.

        Raises `UnknownRequest`, also for another's, and `JobEnded` for one that ended without a result.
        """
        served, queue = self._queue_of(request_id)
        try:
            status = await queue.state(request_id)
            if status is not None and status.tenant != tenant:
                status = None  # not even that another tenant's request exists is disclosed
            if status is not None and not status.state.terminal and wait_s > 0:
                ended = await queue.wait([request_id], wait_s)
                status = ended[0] if ended else await queue.state(request_id)
        except QueueError as error:
            raise Unavailable(f"the queue cannot be asked now: {error}") from None
        if status is None:
            raise UnknownRequest(f"no request {request_id!r}: unknown, or its result was removed by age")
        return self._outcome(served, status, predicted_ms)

    def _outcome(
        self, served: ServedModel, status: JobStatus, predicted_ms: float | None
    ) -> Answer | PendingRequest:
        route = RequestId.parse(status.id).route
        if not status.state.terminal:
            return PendingRequest(status.id, route, status.state, predicted_ms)
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

    def may_hold_work(self, served: ServedModel) -> bool:
        """Whether anything may wait in the model's queue, as far as is known."""
        stats = served.known_stats(self._clock())
        return stats is None or stats.waiting_jobs > 0

    async def watch(self, every_s: float = 0.5) -> None:
        """Keep each model's queue statistics fresh, for decisions and metrics, until cancelled.

        Models do not wait for each other, nor the statistics for the reaper.
        """
        async with asyncio.TaskGroup() as group:
            for served in self._models.values():
                if served.queue is not None:
                    group.create_task(self._watch(served, served.queue, every_s))
                    group.create_task(self._reap(served.queue, every_s))
            await asyncio.Event().wait()

    async def _watch(self, served: ServedModel, queue: DeadlineQueue, every_s: float) -> None:
        while True:
            begun = self._clock()
            with contextlib.suppress(QueueError, TimeoutError):
                async with asyncio.timeout(_STATS_WITHIN_S):
                    stats = await queue.stats()
                served.stats, served.stats_at_ms = stats, begun
                await self._cancel_abandoned(served.name, queue)
            self._recorder.queue(served.name, served.known_stats(self._clock()))
            await asyncio.sleep(max(_LEAST_PAUSE_S, every_s - (self._clock() - begun) / 1_000.0))

    async def _cancel_abandoned(self, model: str, queue: DeadlineQueue) -> None:
        abandoned = self._abandoned[model]
        while abandoned:
            async with asyncio.timeout(_STATS_WITHIN_S):
                await queue.cancel(abandoned[0])
            abandoned.popleft()

    async def _reap(self, queue: DeadlineQueue, every_s: float) -> None:
        """With its workers scaled to zero nobody else does it."""
        while True:
            with contextlib.suppress(QueueError):
                await queue.reap()
            await asyncio.sleep(every_s)
