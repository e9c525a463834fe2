"""Many requests, a bounded number at once, answered in order: what ``map`` and bulk files share.

Without I/O, like :mod:`router.sdk.core`. An :class:`OrderedPlan` says when to take an item, start a request,
wait for the oldest one and hand out a result; at most ``window`` pieces of work are held, so the items may
be an endless generator. :func:`by_halves` finds the rows at fault in a request that the server refuses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, Protocol, Self, TypeVar

from router.sdk.effects import Flow, Send, Sleep
from router.sdk.errors import HybridRouterError
from router.sdk.fork import generation

T = TypeVar("T")

#: What a client answers to :class:`Pull` when the items are over.
END = object()

#: With these the server refuses a request for what is in it, or how much.
ROWS_AT_FAULT = (413, 422)


@dataclass(frozen=True, slots=True)
class Together:
    """Run these requests at once, as far as the concurrency goes, and give their values as a list.

    The first error ends the others and the flow that yielded this.
    """

    flows: Sequence[Flow[Any]]


#: The flow of one piece of work: requests, each a flow of its own.
Work = Generator[Send | Sleep | Together, Any, T]


@dataclass(frozen=True, slots=True)
class Pull:
    """Give the next item, or END."""


@dataclass(frozen=True, slots=True)
class StartWork:
    """Run this beside the others and give a handle to it."""

    work: Work[Any]


@dataclass(frozen=True, slots=True)
class Finish:
    """Wait for the work behind the handle and give its value, or the HybridRouterError it raised."""

    handle: Any


@dataclass(frozen=True, slots=True)
class Emit:
    """Hand this to the caller."""

    value: Any


Step = Pull | StartWork | Finish | Emit | Send | Sleep
Plan = Generator[Step, Any, T]


@dataclass(slots=True)
class Piece:
    """Items that are answered together; ``work`` is None where nothing of them can be sent."""

    work: Work[Any] | None
    handle: Any = None


P = TypeVar("P", bound=Piece)


class OrderedPlan(ABC, Generic[P]):
    """One run over items. :meth:`run` is its plan; :meth:`abandon` ends what an early stop leaves behind."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._begun: deque[P] = deque()
        self._generation = generation()

    @abstractmethod
    def take(self) -> Plan[P | None]:
        """The next piece of work; None after the last."""

    @abstractmethod
    def hand_out(self, piece: P, outcome: Any) -> Plan[None]:
        """Emit what the piece's work ended with: its value, a HybridRouterError, None where it had none."""

    def abandon(self) -> Flow[None]:
        """End what is in flight. Here: leave it to the server."""
        yield from ()

    def is_here(self) -> bool:
        """Whether this is the process that began it, and not a child that was forked since."""
        return self._generation == generation()

    def run(self) -> Plan[None]:
        """Steps for a client to perform; ends after the last item's result."""
        more = True
        while more or self._begun:
            while more and len(self._begun) < self._window:
                piece = yield from self.take()
                if piece is None:
                    more = False
                    break
                if piece.work is not None:
                    piece.handle = yield StartWork(piece.work)
                self._begun.append(piece)
            if self._begun:
                piece, outcome = self._begun[0], None
                if piece.handle is not None:
                    outcome = yield Finish(piece.handle)
                    piece.handle = None
                yield from self.hand_out(piece, outcome)
                self._begun.popleft()


class Verdict(Enum):
    """What an error of a request says about its rows."""

    HALVE = "some of them are at fault: send each half by itself"
    GIVE = "it is the answer to each of them"
    RAISE = "it ends the work"


class Rows(Protocol):
    """Rows that can be sent in one request, or each half by itself."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Self: ...


R = TypeVar("R", bound=Rows)


def by_halves(
    parts: Sequence[R],
    send: Callable[[R], Flow[T]],
    judge: Callable[[HybridRouterError, R], Verdict],
) -> Work[list[tuple[R, T | HybridRouterError]]]:
    """The answer to each part, in order; a part that is refused is halved until the rows at fault are alone.

    A single row that ``judge`` would halve is answered with its error.
    """

    def attempt(rows: R) -> Flow[T | HybridRouterError | None]:
        try:
            return (yield from send(rows))
        except HybridRouterError as error:
            verdict = judge(error, rows)
            if verdict is Verdict.RAISE:
                raise
            return None if verdict is Verdict.HALVE and len(rows) > 1 else error

    answers: list[tuple[R, T | HybridRouterError | None]] = [(rows, None) for rows in parts]
    while waiting := [rows for rows, answer in answers if answer is None]:
        outcomes = iter((yield Together([attempt(rows) for rows in waiting])))
        merged: list[tuple[R, T | HybridRouterError | None]] = []
        for rows, answer in answers:
            if answer is None and (answer := next(outcomes)) is None:
                middle = len(rows) // 2
                merged += [(rows[:middle], None), (rows[middle:], None)]
            else:
                merged.append((rows, answer))
        answers = merged
    return [(rows, answer) for rows, answer in answers if answer is not None]
