"""A request as it reaches the service, what comes back, and the models that answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from optimizers.artifact import Manifest
from optimizers.tensors import Tensors, TensorSpec
from router.online.dispatcher import OnlineDispatcher
from router.scheduling.recent_least import RecentLeast
from router.scheduling.tuning import LEAST_QUEUE_MS, STATS_VALID_MS
from workers.queue.contract import DeadlineQueue, QueueStats
from workers.queue.job import JobState

_NONE: Mapping[Any, Any] = {}


class InferenceRequest(NamedTuple):
    """One inference request and who sends it.

    ``hold_s`` is how long a queued one is waited for before it is handed back; ``key`` its idempotency key.
    ``headers`` (names in lower case) and ``parameters`` are for the policy's conditions; ``trace`` is the
    trace context that is passed on (W3C ``traceparent``). The budget counts from ``arrived_ms``, on the
    service's clock; None: from when the service is called.
    """

    model: str
    inputs: Tensors
    budget_ms: float
    variant: str | None = None
    hold_s: float = 0.0
    key: str | None = None
    tenant: str = ""
    headers: Mapping[bytes, bytes] = _NONE
    parameters: Mapping[str, Any] = _NONE
    trace: str | None = None
    arrived_ms: float | None = None


class Answer(NamedTuple):
    """A result and how it was made."""

    id: str | None
    outputs: Tensors
    model: str
    variant: str
    route: str
    path: str
    predicted_ms: float | None
    queued_ms: float
    deadline_met: bool
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A request that waits in the queue; ask again by ``id``."""

    id: str
    route: str
    state: JobState
    predicted_ms: float | None


@dataclass(slots=True)
class ServedModel:
    """One model as this router serves it."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variants: Mapping[str, Manifest]
    online: OnlineDispatcher | None
    queue: DeadlineQueue | None
    stats: QueueStats | None = None
    #: When the statistics were asked for, on the service's clock.
    stats_at_ms: float = -math.inf
    #: How long answers through the queue took whose callers waited for them.
    queue_ms: RecentLeast = field(default_factory=lambda: RecentLeast(LEAST_QUEUE_MS))

    def known_stats(self, now_ms: float) -> QueueStats | None:
        """The queue's statistics; None where they are missing or older than a second, which is unknown."""
        return self.stats if now_ms - self.stats_at_ms <= STATS_VALID_MS else None
