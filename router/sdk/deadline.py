"""How long a call may go on: its latency budget, the grace after it, and deadlines that calls share.

Every time is in seconds of the one monotonic clock that the client was given; no module here reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass
from datetime import timedelta

from router.units import budget_ms

#: A latency budget as people write it: "50ms", "2s", "10min", "2h", a timedelta, or seconds.
Budget = str | int | float | timedelta


@dataclass(frozen=True, slots=True)
class Limit:
    """The end of one call.

    ``deadline_s`` is when the latency budget is over (None: the server's default applies).
    ``give_up_s`` is when the caller waits no longer for word of it; infinite where only the server
    ends the wait.
    """

    started_s: float
    deadline_s: float | None
    give_up_s: float

    def budget_header(self, now_s: float) -> bytes | None:
        """What is left, in milliseconds, for the wire. None where there is no budget.

        Whole milliseconds from 10 up, so that the time spent on encoding does not make 49.98 of the
        50 that a policy's route names.
        """
        if self.deadline_s is None:
            return None
        left_ms = max((self.deadline_s - now_s) * 1e3, 0.01)
        return b"%d" % round(left_ms) if left_ms >= 10 else b"%.2f" % left_ms


class Deadline:
    """An instant that several calls share; what is left of it shrinks by itself."""

    __slots__ = ("_clock", "at_s")

    def __init__(self, at_s: float, clock: Callable[[], float]) -> None:
        self.at_s = at_s
        self._clock = clock

    @property
    def left_ms(self) -> float:
        """Milliseconds left, 0 when it has passed."""
        return max(0.0, (self.at_s - self._clock()) * 1e3)


@dataclass(frozen=True, slots=True)
class _Scope:
    owner: object
    deadline: Deadline
    outer: _Scope | None


# Per thread and per task, as a deadline must not leak into work that runs beside it.
_scope: ContextVar[_Scope | None] = ContextVar("hybrid_router_deadline", default=None)


def shared_deadline_s(owner: object) -> float | None:
    """When the deadline that ``owner``'s calls share here is over; None where they share none."""
    scope = _scope.get()
    while scope is not None:
        if scope.owner is owner:
            return scope.deadline.at_s
        scope = scope.outer
    return None


class DeadlineBlock:
    """Within the block, ``owner``'s calls share one budget, from when it is entered. An inner block can
    only shorten it. For ``with`` and ``async with``; raises ValueError at once for a budget that is none.
    """

    __slots__ = ("_budget_s", "_clock", "_owner", "_tokens")

    def __init__(self, owner: object, budget: Budget, clock: Callable[[], float]) -> None:
        self._owner, self._budget_s, self._clock = owner, budget_ms(budget) / 1e3, clock
        self._tokens: list[Token[_Scope | None]] = []

    def __enter__(self) -> Deadline:
        at_s = self._clock() + self._budget_s
        outer_s = shared_deadline_s(self._owner)
        deadline = Deadline(at_s if outer_s is None else min(at_s, outer_s), self._clock)
        self._tokens.append(_scope.set(_Scope(self._owner, deadline, _scope.get())))
        return deadline

    def __exit__(self, *_: object) -> None:
        _scope.reset(self._tokens.pop())

    async def __aenter__(self) -> Deadline:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()


def limit_of(
    budget: Budget | None, *, owner: object, now_s: float, grace_s: float, timeout_s: float = math.inf
) -> Limit:
    """The limit of a call that starts now: its own budget, or the shared deadline if that is sooner.

    A call without either gives up after ``timeout_s``. Raises ValueError for a budget that is none.
    """
    deadline_s = None if budget is None else now_s + budget_ms(budget) / 1e3
    shared_s = shared_deadline_s(owner)
    if shared_s is not None and (deadline_s is None or shared_s < deadline_s):
        deadline_s = shared_s
    give_up_s = now_s + timeout_s if deadline_s is None else deadline_s + grace_s
    return Limit(now_s, deadline_s, give_up_s)
