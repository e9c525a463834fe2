"""``map``: many items as few requests, packed by shape, in flight side by side, answered in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from router.sdk import codec
from router.sdk.codec import ModelInfo, Result, Tensor
from router.sdk.core import RESPOND_ASYNC, ClientCore
from router.sdk.deadline import Limit
from router.sdk.effects import Flow, Options, Ticket
from router.sdk.errors import HybridRouterError, InvalidRequest, JobCancelled, JobFailed
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

#: Called with the items answered so far and how many there are, None where that is not known.
Progress = Callable[[int, int | None], None]

#: How long an early stop may take to tell the server.
ABANDON_S = 2.0

#: What an item is answered with.
Answer = Result | HybridRouterError

#: Per item, in order: None where it is the next row of the request, else why it is in none.
Slots = list[InvalidRequest | None]
Row = list[Tensor]


@dataclass(slots=True)
class _Request(Piece):
    """The items of one request, and the tickets of what was sent for them."""

    slots: Slots = field(default_factory=list)
    tickets: list[Ticket] = field(default_factory=list)


class MapPlan(OrderedPlan[_Request]):
    """One ``map`` call."""

    def __init__(
        self,
        core: ClientCore,
        model: str,
        limit: Limit,
        *,
        rows_per_request: int,
        concurrency: int,
        options: Options,
        return_errors: bool,
    ) -> None:
        if rows_per_request < 1 or concurrency < 1:
            raise ValueError(
                f"rows_per_request ({rows_per_request}) and concurrency ({concurrency}) must be 1 or more"
            )
        super().__init__(window=concurrency)
        self._core, self._model, self._limit = core, model, limit
        self._rows = rows_per_request
        self._options, self._return_errors = options, return_errors
        self._info: ModelInfo | None = None
        self._held: Row | None = None  # an item that did not fit the request before it
        self._ended = self._abandoned = False

    def take(self) -> Plan[_Request | None]:
        if self._info is None:
            self._info = yield from self._core.known_model(self._model, self._limit)
        rows, slots = yield from self._pack(self._info)
        if not slots:
            return None
        request = _Request(None, slots=slots)
        if rows:
            request.work = self._answers(request, rows, replace(self._limit, started_s=self._core.clock()))
        return request

    def abandon(self) -> Flow[None]:
        """Cancel at the server what is still in flight. Never raises for what cannot be cancelled."""
        now_s = self._core.clock()
        limit = Limit(now_s, None, now_s + ABANDON_S)
        self._abandoned = True
        tickets = [t for request in self._begun if request.handle is not None for t in request.tickets]
        for ticket in tickets:
            ticket.abandoned = True
        for ticket in tickets:
            if ticket.id is not None and ticket.result is None:
                try:
                    yield from self._core.cancel(ticket.id, limit)
                except HybridRouterError:
                    # The server ends it by its deadline. One that cannot be reached is not asked again.
                    return

    def _pack(self, info: ModelInfo) -> Plan[tuple[list[Row], Slots]]:
        """The next request's items, up to ``rows_per_request`` of one shape; no slots after the last item."""
        rows: list[Row] = []
        slots: Slots = []
        while len(slots) < self._rows:
            row, self._held = self._held, None
            if row is None:
                item = END if self._ended else (yield Pull())
                if item is END:
                    self._ended = True
                    break
                try:
                    row = codec.arrange(item, info, sample=True)
                except InvalidRequest as error:
                    slots.append(error)
                    continue
            if rows and not codec.same_shapes(rows[0], row):
                self._held = row
                break
            rows.append(row)
            slots.append(None)
        return rows, slots

    def _answers(self, request: _Request, rows: list[Row], limit: Limit) -> Work[list[Answer]]:
        """An answer for each row. Where errors are given in place, a row that is refused costs no other."""
        answers: list[Answer] = []
        for part, answer in (yield from by_halves([rows], partial(self._send, request, limit), self._judge)):
            answers += [answer] * len(part) if isinstance(answer, HybridRouterError) else answer
        return answers

    def _send(self, request: _Request, limit: Limit, rows: Sequence[Row]) -> Flow[list[Result]]:
        # The budget is the whole map's; the latency that a result tells is its own request's.
        ticket = Ticket(limit, outputs=self._options.outputs, abandoned=self._abandoned)
        request.tickets.append(ticket)
        try:
            yield from self._core.post(ticket, self._model, codec.stack(rows), self._options, RESPOND_ASYNC)
            result = ticket.result or (yield from self._core.follow(ticket, self._limit))
        except (JobFailed, InvalidRequest):
            ticket.id = None  # it has ended: there is nothing to cancel
            raise
        return codec.split_rows(result, len(rows))

    def _judge(self, error: HybridRouterError, rows: Sequence[Row]) -> Verdict:
        if isinstance(error, JobCancelled):
            return Verdict.RAISE
        if not self._return_errors or not isinstance(error, JobFailed | InvalidRequest):
            return Verdict.GIVE
        return Verdict.HALVE if error.status in ROWS_AT_FAULT else Verdict.GIVE

    def hand_out(self, piece: _Request, outcome: list[Answer] | HybridRouterError | None) -> Plan[None]:
        answers = iter([] if isinstance(outcome, HybridRouterError) else outcome or [])
        for slot in piece.slots:
            value = slot or (outcome if isinstance(outcome, HybridRouterError) else next(answers))
            if isinstance(value, HybridRouterError) and not self._return_errors:
                raise value
            yield Emit(value)
            if not self.is_here():
                raise HybridRouterError(
                    "this map was begun before a fork, and its requests are the parent's: "
                    "call map again in the child"
                )


def stopped() -> JobCancelled:
    """What a request of a map that was stopped early ends with."""
    return JobCancelled("the map that this request belongs to was stopped")
