"""A chunk of rows to the server and back: under which key, and what to do when rows fail."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, NoReturn

from router.bulk.chunks import AnsweredRows, RawChunk, RowBatch, Settled, arrange
from router.bulk.errors import InputError
from router.bulk.ledger import Ledger, SubmittedRequest
from router.bulk.plan import Order
from router.sdk.async_client import AsyncClient, AsyncJob
from router.sdk.codec import ModelInfo, Result
from router.sdk.deadline import Deadline
from router.sdk.errors import (
    DeadlineExceeded,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    JobUnknown,
    ProtocolError,
    ResultPending,
)

#: How often the same rows are asked anew in one run when the server has no answer for them any more.
MAX_TRIES = 4
#: How much longer than its budget a request of an earlier run is waited for.
_GRACE_MS = 5_000.0

Failures = list[tuple[int, str]]
End = tuple[list[AnsweredRows], Failures]


class Sender:
    """Sends the batches of one run, at most ``order.concurrency`` at once."""

    def __init__(
        self, client: AsyncClient, model: ModelInfo, order: Order, ledger: Ledger, deadline: Deadline
    ) -> None:
        self._client, self._model, self._order = client, model, order
        self._ledger, self._deadline = ledger, deadline
        self._turns = asyncio.Semaphore(order.concurrency)
        self._taken = ledger.resumed  # whether the server has taken any rows of this run yet
        self._refused = 0
        self.late = 0

    async def settle(self, raw: RawChunk) -> Settled:
        """The fate of each row. Raises what ends the whole run: no server, no right, no time, no sense."""
        batches, failures = arrange(raw, self._model)
        if not batches and not self._taken and raw.start == 0:
            raise InputError(f"none of the first {raw.count} rows fits the model; row 0: {failures[0][1]}")
        ends = await _gather([self._run(batch) for batch in batches])
        settled = Settled(raw.start, raw.stop, raw.position)
        for parts, failed in ends:
            settled.parts += parts
            failures += failed
        settled.failures = sorted(failures)
        return settled

    async def _run(self, batch: RowBatch) -> End:
        """The answers to a batch; one that fails is halved until the rows at fault are alone."""
        try:
            async with self._turns:
                result = await self._answer(batch)
        except JobCancelled as error:
            return [], [(row, str(error)) for row in batch.rows]
        except (JobFailed, InvalidRequest) as error:
            if isinstance(error, InvalidRequest) and error.status not in (413, 422):
                raise
            if len(batch.rows) == 1:
                self._count_refusal(error)
                return [], [(batch.rows[0], str(error))]
        else:
            self.late += result.deadline_met is False and len(batch.rows)
            return [AnsweredRows(batch.rows, result.outputs, result.variant)], []
        (first, first_failed), (second, second_failed) = await _gather([self._run(h) for h in batch.halves()])
        return first + second, first_failed + second_failed

    def _count_refusal(self, error: JobFailed | InvalidRequest) -> None:
        """Where every row is refused from the start, the request is at fault and not the rows."""
        if isinstance(error, InvalidRequest) and not self._taken:
            self._refused += 1
            if self._refused >= self._order.rows_per_request:
                raise error

    async def _answer(self, batch: RowBatch) -> Result:
        """The result for a batch, under the next key where the server has none for the last."""
        known = self._ledger.submitted.get(batch.name)
        tries = known.tries if known else 0
        for left in reversed(range(MAX_TRIES)):
            try:
                result = await (self._again(known) if known else self._first(batch, tries))
                return self._checked(result, batch)
            except JobUnknown:
                if not left:
                    raise
            except DeadlineExceeded:
                # Of an earlier run with another deadline, perhaps: this one may have time left.
                if not left or self._deadline.left_ms <= 0:
                    raise
            except InvalidRequest as error:
                if error.status != 409 or not left:  # the key is known with what the server decided then
                    raise
            known, tries = None, tries + 1
        raise AssertionError("the last try returns or raises")

    async def _first(self, batch: RowBatch, tries: int) -> Result:
        first, last = batch.name
        job: AsyncJob = await self._client.submit(
            self._order.model,
            batch.inputs(),
            variant=self._order.variant,
            outputs=self._order.outputs or None,
            idempotency_key=self._ledger.key(first, last, tries),
        )
        self._taken = True
        if job.id:
            self._ledger.accepted(batch.name, SubmittedRequest(job.id, tries))
        return await job.result()

    async def _again(self, known: SubmittedRequest) -> Result:
        """Of a request that an earlier process sent."""
        wait_s = (self._deadline.left_ms + _GRACE_MS) / 1e3
        try:
            return await self._client.job(known.id, outputs=self._order.outputs or None).result(wait_s)
        except ResultPending as error:
            raise DeadlineExceeded(str(error), id=known.id) from None

    def _checked(self, result: Result, batch: RowBatch) -> Result:
        """The result, if it has as many rows as the batch."""
        for name, array in result.outputs.items():
            if array.ndim == 0 or array.shape[0] != len(batch.rows):
                raise ProtocolError(
                    f"output {name!r} has shape {list(array.shape)} for {len(batch.rows)} rows", id=result.id
                )
        return result


async def _gather(runs: Sequence[Coroutine[Any, Any, End]]) -> list[End]:
    """All of them; the first error cancels the others and is raised as it is."""
    if len(runs) == 1:
        return [await runs[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run) for run in runs]
    except BaseExceptionGroup as errors:
        _raise_first(errors)
    return [task.result() for task in tasks]


def _raise_first(errors: BaseExceptionGroup[BaseException]) -> NoReturn:
    error = errors.exceptions[0]
    if isinstance(error, BaseExceptionGroup):
        _raise_first(error)
    raise error from None
