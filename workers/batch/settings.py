"""How a batch worker's loop works, and what it counts."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from workers.execution.work_limits import LOAD_LIMIT, WorkLimit, limit_for


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """``lease_ms`` must be well above the longest batch; leases are renewed at a third of it.
    ``max_rows`` bounds a batch (default: what the variant's profile measured). ``idle_s`` is the longest
    wait for work at a time, ``reap_s`` how often the loop reaps, ``watch_s`` how often it checks the model.
    ``limit`` maps the predicted time of a batch in ms to how long it may take before it counts as hung;
    ``load_limit`` is how long loading may take."""

    lease_ms: int = 10_000
    max_rows: int | None = None
    idle_s: float = 30.0
    reap_s: float = 0.5
    watch_s: float = 1.0
    limit: Callable[[float], WorkLimit] = limit_for
    load_limit: WorkLimit = LOAD_LIMIT

    def __post_init__(self) -> None:
        if self.lease_ms < 100:
            raise ValueError(f"lease_ms is {self.lease_ms}: a lease below 100 ms cannot be renewed in time")
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows is {self.max_rows}, must be 1 or more")


@dataclass(slots=True)
class Meter:
    """What the loop counts, in plain numbers; the publisher removes ``batches``."""

    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    batches: deque[tuple[str, int, float]] = field(default_factory=lambda: deque(maxlen=10_000))
    stale: int = 0
