"""A chunk of rows to the server and back: under which key, and what to do when rows fail."""

from __future__ import annotations

from router.bulk.chunks import AnsweredRows, RawChunk, RowBatch, Settled, arrange
from router.bulk.errors import InputError
from router.bulk.ledger import Ledger, SubmittedRequest
from router.bulk.plan import Order
from router.sdk.codec import ModelInfo, Result
from router.sdk.core import ClientCore
from router.sdk.deadline import Deadline
from router.sdk.effects import Flow, Options
from router.sdk.errors import (
    DeadlineExceeded,
    HybridRouterError,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    JobUnknown,
    ProtocolError,
    ResultPending,
)
from router.sdk.window import (
    END,
    ROWS_AT_FAULT,
    Emit,
    OrderedPlan,
    Piece,
    Plan,
    Pull,
    Verdict,
    Work,
    by_halves,
)

#: Chunks in memory for each that is with the server, so that a slow one at the head holds up no other.
_WINDOW = 2
#: How often the same rows are asked anew in one run when the server has no answer for them any more.
MAX_TRIES = 4
#: How much longer than its budget a request of an earlier run is waited for.
_GRACE_MS = 5_000.0


class BulkPlan(OrderedPlan[Piece]):
    """One run's chunks, of which it emits the fate of each row. What is in flight when it stops goes on."""

    def __init__(
        self, core: ClientCore, model: ModelInfo, order: Order, ledger: Ledger, deadline: Deadline
    ) -> None:
        super().__init__(window=order.concurrency * _WINDOW)
        self._core, self._model, self._order = core, model, order
        self._ledger, self._deadline = ledger, deadline
        self._taken = ledger.resumed  # whether the server has taken any rows of this run yet
        self._refused = 0
        self.late = 0

    def take(self) -> Plan[Piece | None]:
        raw = yield Pull()
        return None if raw is END else Piece(self._settle(raw))

    def hand_out(self, piece: Piece, outcome: Settled | HybridRouterError) -> Plan[None]:
        if isinstance(outcome, HybridRouterError):
            raise outcome
        yield Emit(outcome)

    def _settle(self, raw: RawChunk) -> Work[Settled]:
        """The fate of each row. Raises what ends the whole run: no server, no right, no time, no sense."""
        batches, failures = arrange(raw, self._model)
        if not batches and not self._taken and raw.start == 0:
            raise InputError(f"none of the first {raw.count} rows fits the model; row 0: {failures[0][1]}")
        settled = Settled(raw.start, raw.stop, raw.position)
        for batch, answer in (yield from by_halves(batches, self._answer, self._judge)):
            if isinstance(answer, HybridRouterError):
                failures += [(row, str(answer)) for row in batch.rows]
            else:
                settled.parts.append(AnsweredRows(batch.rows, answer.outputs, answer.variant))
        settled.failures = sorted(failures)
        return settled

    def _judge(self, error: HybridRouterError, batch: RowBatch) -> Verdict:
        if isinstance(error, JobCancelled):
            return Verdict.GIVE
        if isinstance(error, JobFailed):
            return Verdict.HALVE
        if not isinstance(error, InvalidRequest) or error.status not in ROWS_AT_FAULT:
            return Verdict.RAISE
        # Where every row is refused from the start, the request is at fault and not the rows.
        if len(batch) == 1 and not self._taken:
            self._refused += 1
            if self._refused >= self._order.rows_per_request:
                return Verdict.RAISE
        return Verdict.HALVE

    def _answer(self, batch: RowBatch) -> Flow[Result]:
        """The result for a batch, under the next key where the server has none for the last."""
        known = self._ledger.submitted.get(batch.name)
        tries = known.tries if known else 0
        for left in reversed(range(MAX_TRIES)):
            try:
                result = yield from (self._again(known) if known else self._first(batch, tries))
                self._check(result, batch)
                self.late += result.deadline_met is False and len(batch)
                return result
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

    def _first(self, batch: RowBatch, tries: int) -> Flow[Result]:
        options = Options(
            self._order.variant, self._ledger.key(*batch.name, tries), self._order.outputs or None
        )
        ticket = yield from self._core.submit(
            self._order.model, batch.inputs(), self._core.limit(None), options
        )
        self._taken = True
        if ticket.id:
            self._ledger.accepted(batch.name, SubmittedRequest(ticket.id, tries))
        return (yield from self._core.result(ticket, None))

    def _again(self, known: SubmittedRequest) -> Flow[Result]:
        """Of a request that an earlier process sent."""
        wait_s = (self._deadline.left_ms + _GRACE_MS) / 1e3
        try:
            ticket = self._core.ticket(known.id, self._order.outputs or None)
            return (yield from self._core.result(ticket, wait_s))
        except ResultPending as error:
            raise DeadlineExceeded(str(error), id=known.id) from None

    def _check(self, result: Result, batch: RowBatch) -> None:
        """Raises ProtocolError for a result that has not as many rows as the batch."""
        for name, array in result.outputs.items():
            if array.ndim == 0 or array.shape[0] != len(batch):
                raise ProtocolError(
                    f"output {name!r} has shape {list(array.shape)} for {len(batch)} rows", id=result.id
                )
