"""Many items as few requests: packed, a bounded number in flight, answered in the order they were given.

Without I/O, like :mod:`router.sdk.core`: the plan says when to take an item, start a request, wait
for the oldest and hand out a result. At most ``concurrency`` requests' items and results are held, so
the items may be an endless generator.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from router.sdk import codec
from router.sdk.codec import ModelInfo, Result, Tensor
from router.sdk.core import RESPOND_ASYNC, ClientCore
from router.sdk.deadline import Limit
from router.sdk.effects import Flow, Options, Send, Sleep, Ticket
from router.sdk.errors import HybridRouterError, InvalidRequest, JobCancelled, JobFailed
from router.sdk.fork import generation

#: Told the items answered so far and how many there are, None where that is not known.
Progress = Callable[[int, int | None], None]

#: How long an early stop may take to tell the server.
ABANDON_S = 2.0

#: What an item is answered with.
Answer = Result | HybridRouterError

#: With these the server refuses a request for what is in it, or how much.
_AT_FAULT = (413, 422)

#: What a client answers to :class:`Pull` when the items are over.
END = object()


@dataclass(frozen=True, slots=True)
class Pull:
    """Give the next item, or END."""


@dataclass(frozen=True, slots=True)
class Start:
    """Run this flow beside the others and give a handle to it."""

    flow: Flow[list[Answer]]


@dataclass(frozen=True, slots=True)
class Finish:
    """Wait for the flow behind the handle and give its answers, or the HybridRouterError it raised."""

    handle: Any


@dataclass(frozen=True, slots=True)
class Emit:
    """Hand this to the caller."""

    value: Answer


Step = Pull | Start | Finish | Emit | Send | Sleep
Plan = Generator[Step, Any, None]
#: Per item, in order: None where it is the next row of the request, else why it is in none.
Slots = list[InvalidRequest | None]


@dataclass(slots=True)
class _Flight:
    """One request and the items in it."""

    handle: Any
    slots: Slots
    ticket: Ticket


class MapPlan:
    """One ``map`` call. :meth:`run` is its plan; :meth:`abandon` ends what an early stop leaves behind."""

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
        self._core, self._model, self._limit = core, model, limit
        self._rows, self._concurrency = rows_per_request, concurrency
        self._options, self._return_errors = options, return_errors
        self._window: deque[_Flight] = deque()
        self._held: list[Tensor] | None = None  # an item that did not fit the request before it
        self._generation = generation()

    def is_here(self) -> bool:
        """Whether this is the process that began it, and not a child that was forked since."""
        return self._generation == generation()

    def run(self) -> Plan:
        """Steps for a client to take; ends after the last item's result."""
        info = yield from self._core.known_model(self._model, self._limit)
        more = True
        while more or self._window:
            while more and len(self._window) < self._concurrency:
                rows, slots, more = yield from self._take(info)
                if slots:
                    # The budget is the whole map's; the latency that a result tells is its own request's.
                    ticket = Ticket(
                        replace(self._limit, started_s=self._core.clock()), outputs=self._options.outputs
                    )
                    handle = (yield Start(self._request(ticket, rows))) if rows else None
                    self._window.append(_Flight(handle, slots, ticket))
            if self._window:
                yield from self._hand_out(self._window[0])
                self._window.popleft()

    def abandon(self) -> Flow[None]:
        """Cancel at the server what is still in flight. Never raises for what cannot be cancelled."""
        now_s = self._core.clock()
        limit = Limit(now_s, None, now_s + ABANDON_S)
        flights = [flight for flight in self._window if flight.handle is not None]
        for flight in flights:
            flight.ticket.abandoned = True
        for flight in flights:
            if flight.ticket.id is not None and flight.ticket.result is None:
                try:
                    yield from self._core.cancel(flight.ticket.id, limit)
                except HybridRouterError:
                    # The server ends it by its deadline. One that cannot be reached is not asked again.
                    return

    def _take(self, info: ModelInfo) -> Generator[Step, Any, tuple[list[list[Tensor]], Slots, bool]]:
        """The next request's items, up to ``rows_per_request`` of one shape, and if more may come."""
        rows: list[list[Tensor]] = []
        slots: Slots = []
        while len(slots) < self._rows:
            row = self._held
            self._held = None
            if row is None:
                item = yield Pull()
                if item is END:
                    return rows, slots, False
                try:
                    row = codec.arrange(item, info, sample=True)
                except InvalidRequest as error:
                    slots.append(error)
                    continue
            if rows and any(a.array.shape != b.array.shape for a, b in zip(rows[0], row, strict=True)):
                self._held = row
                break
            rows.append(row)
            slots.append(None)
        return rows, slots, True

    def _request(self, ticket: Ticket, rows: Sequence[Sequence[Tensor]]) -> Flow[list[Answer]]:
        """An answer for each row. Where errors are given in place, a row that is refused costs no other."""
        tensors = codec.stack(rows)
        try:
            yield from self._core.post(ticket, self._model, tensors, self._options, RESPOND_ASYNC)
            result = ticket.result or (yield from self._core.follow(ticket, self._limit))
            return [*codec.split_rows(result, len(rows))]
        except (JobFailed, InvalidRequest) as error:
            if len(rows) == 1 or not self._return_errors or error.status not in _AT_FAULT:
                raise
        answers: list[Answer] = []
        middle = len(rows) // 2
        for half in (rows[:middle], rows[middle:]):
            ticket.id = ticket.result = None
            try:
                answers += yield from self._request(ticket, half)
            except JobCancelled:
                raise
            except HybridRouterError as error:
                answers += [error] * len(half)
        return answers

    def _hand_out(self, flight: _Flight) -> Plan:
        outcome: list[Answer] | HybridRouterError = []
        if flight.handle is not None:
            outcome = yield Finish(flight.handle)
            flight.handle = None
        answers = iter([] if isinstance(outcome, HybridRouterError) else outcome)
        for slot in flight.slots:
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
