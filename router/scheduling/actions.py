"""What the scheduler and a batch's delivery ask their caller to do, as values.

The dispatcher carries them out with futures and calls, the simulator with events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

from router.scheduling.variant_queue import T


@dataclass(frozen=True, slots=True)
class BatchDispatch(Generic[T]):
    """One attempt at a batch: these items, of ``variant``, on ``replica`` (empty: on any).

    ``batch_id`` is the scheduler's number for it. A replica that has not answered by ``silent_ms`` may well
    have stopped.
    """

    batch_id: int
    variant: str
    items: list[T]
    rows: int
    bound_ms: float
    replica: str
    silent_ms: float


@dataclass(frozen=True, slots=True)
class SendBatch(Generic[T]):
    """Send this batch."""

    batch: BatchDispatch[T]


@dataclass(frozen=True, slots=True)
class Drop(Generic[T]):
    """Tell the callers of these items that their deadlines cannot be met."""

    items: list[T]


@dataclass(frozen=True, slots=True)
class Fail(Generic[T]):
    """Tell the callers of these items that their batch could not be run; no attempt is left."""

    items: list[T]


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Ask again at this moment, unless something else happens before."""

    at_ms: float


#: What `Scheduler.step` returns; `BatchDelivery` returns `Fail` too.
Action = SendBatch[T] | Drop[T] | Fail[T] | WakeAt
