"""How one batch gets one answer: at most two attempts, on different replicas, and the first answer counts.

A state machine without I/O. `router.online.dispatcher` drives it with calls and timers, the simulator with
events. ::

    sent --answered--> every item is answered, late attempts only inform the scheduler
      |---failed-----> no other attempt is open: send again if one item may still be in time, else fail all
      '---overdue----> send to a second replica if one has room; drop whose deadline has passed, look again at
                       the next deadline
"""

from __future__ import annotations

import math
from typing import Generic, NamedTuple

from router.scheduling.actions import Action, BatchDispatch, Drop, Fail, SendBatch, WakeAt
from router.scheduling.scheduler import Scheduler
from router.scheduling.tuning import GIVE_UP_BOUNDS, GIVE_UP_BOUNDS_PER_ITEM, GIVE_UP_MS, MAX_ATTEMPTS
from router.scheduling.variant_queue import T


class RunTimes(NamedTuple):
    """What a replica says of a batch, ms: how long it ran, how long it waited there, and how long the replica
    has run in all (None where it does not say)."""

    run_ms: float
    wait_ms: float
    ran_ms: float | None = None


def give_up_after_ms(batch: BatchDispatch[T]) -> float:
    """How long the answer of one attempt is waited for; then the attempt has failed."""
    bounds = GIVE_UP_BOUNDS + GIVE_UP_BOUNDS_PER_ITEM * (len(batch.items) - 1)
    return GIVE_UP_MS + bounds * batch.bound_ms


class BatchDelivery(Generic[T]):
    """One batch from its first attempt on: how many attempts were made, and how many may still be answered.

    Each attempt ends in exactly one of `answered`, `failed` and `discard`.
    """

    __slots__ = ("_answered", "_attempts", "_first", "_open", "_scheduler")

    def __init__(self, scheduler: Scheduler[T], batch: BatchDispatch[T]) -> None:
        self._scheduler, self._first = scheduler, batch
        self._attempts = self._open = 1
        self._answered = False

    @property
    def variant(self) -> str:
        return self._first.variant

    @property
    def is_open(self) -> bool:
        """Whether any attempt may still be answered."""
        return self._open > 0

    @property
    def all_answered(self) -> bool:
        """Every caller has an answer, or has left."""
        return self._answered or all(item.left for item in self._first.items)

    def answered(self, batch: BatchDispatch[T], now_ms: float, times: RunTimes | None) -> bool:
        """An attempt was answered; True where this is the batch's first answer.

        Without ``times`` nothing is learnt from it but that its replica answers.
        """
        first_answer = not self.all_answered
        self._open -= 1
        self._answered = True
        if times is None:
            self._scheduler.completed_untimed(batch, now_ms)
        else:
            self._scheduler.completed(batch, now_ms, times.run_ms, times.wait_ms, times.ran_ms, first_answer)
        return first_answer

    def failed(self, batch: BatchDispatch[T], now_ms: float) -> list[Action[T]]:
        """An attempt came back with an error, or took too long."""
        self._open -= 1
        self._scheduler.abandon(batch)
        if self._open or self.all_answered:
            return []
        retry = None
        if self._attempts < MAX_ATTEMPTS:
            retry = self._scheduler.retry(batch, now_ms, failed=True)
        if retry is None:
            self._answered = True
            return [Fail(self._first.items)]
        return [self._send(retry)]

    def discard(self, batch: BatchDispatch[T]) -> None:
        """An attempt ended without an answer that can be used, and is not repeated."""
        self._open -= 1
        self._scheduler.abandon(batch)

    def overdue(self, now_ms: float) -> list[Action[T]]:
        """The first attempt has taken longer than its bound explains, or a deadline has passed since then."""
        if not self._open or self.all_answered:
            return []
        actions: list[Action[T]] = []
        if self._attempts < MAX_ATTEMPTS:
            retry = self._scheduler.retry(self._first, now_ms, failed=False)
            if retry is not None:
                actions.append(self._send(retry))
        waiting = [item for item in self._first.items if item.droppable and not item.left]
        expired = [item for item in waiting if item.deadline_ms <= now_ms]
        if expired:
            actions.append(Drop(expired))
        next_ms = min((item.deadline_ms for item in waiting if item.deadline_ms > now_ms), default=math.inf)
        if next_ms < math.inf:
            actions.append(WakeAt(next_ms))
        return actions

    def _send(self, batch: BatchDispatch[T]) -> SendBatch[T]:
        self._open += 1
        self._attempts += 1
        return SendBatch(batch)
