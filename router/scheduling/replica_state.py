"""What one router knows of one replica, and of one of its batches there."""

from __future__ import annotations

import math

from router.scheduling.tuning import BATCHES_IN_FLIGHT, MIN_ROOM, SHARED_USAGE

Spot = tuple[float, int, "ReplicaState"]


class ReplicaState:
    """One replica. ``name`` is empty for whichever the source finds; times in ms."""

    __slots__ = (
        "answered_ms",
        "busy_until_ms",
        "completed_ms",
        "counted",
        "held_until_ms",
        "in_flight",
        "living",
        "name",
        "others_ms",
        "pace",
        "ran_ms",
        "shelf",
        "silent",
        "slow",
        "spot",
        "usage",
    )

    def __init__(self, name: str) -> None:
        self.name, self.living = name, True
        self.in_flight: dict[int, InFlightBatch] = {}
        self.busy_until_ms = self.held_until_ms = 0.0
        #: How many times slower than the others, as a logarithm.
        self.pace = 0.0
        self.slow = self.silent = False
        self.answered_ms = self.completed_ms = -math.inf
        #: The share of its time that others take, what a batch waits for theirs, what it ran in all.
        self.usage = self.others_ms = 0.0
        self.ran_ms: float | None = None
        self.shelf: list[Spot] | None = None
        self.spot: Spot = (0.0, 0, self)
        self.counted = (0, 0, 0.0, 0.0)

    @property
    def shared(self) -> bool:
        return self.usage > SHARED_USAGE

    @property
    def wait_ms(self) -> float:
        """How long a batch waits there for others' batches, beside this router's own."""
        return self.others_ms if self.shared else 0.0

    @property
    def slots(self) -> int:
        return 1 if self.shared else BATCHES_IN_FLIGHT

    @property
    def room(self) -> float:
        """How much of a replica of usual pace it is worth to this router."""
        free = max(MIN_ROOM, 1.0 - self.usage) if self.shared else 1.0
        return free * math.exp(-self.pace) if self.slow else free


class InFlightBatch:
    """One batch at a replica, expected to end there at ``end_ms``, and late beyond what can be
    explained ``patience_ms`` later, at ``silent_ms``."""

    __slots__ = ("counted", "end_ms", "patience_ms", "replica", "sent_ms", "silent_ms")

    def __init__(self, replica: ReplicaState, sent_ms: float, end_ms: float, patience_ms: float) -> None:
        self.replica, self.sent_ms, self.end_ms, self.patience_ms = replica, sent_ms, end_ms, patience_ms
        self.silent_ms = end_ms + patience_ms
        #: Whether it is part of what remains for the replicas of usual pace.
        self.counted = not replica.slow
