"""One simulated request on its way, from its arrival to the one moment at which it ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol

from router.policy.terms.route_facts import RouteFacts
from router.scheduling.rate_limits import Quotas
from router.simulate.workload import Request

Outcome = Literal["answered", "refused", "expired", "failed"]


class SimulatedRequest:
    """An item of the scheduler, or the owner of its `RequestPart`s. ``arrived_ms``: when the router saw it;
    ``rows``: what it costs, in rows of usual size. ``router``: the number of the one that it came to.
    ``counted_by``: where it counts as in flight; once it is queued, for ``hold_ms`` at most."""

    __slots__ = (
        "arrived_ms",
        "counted_by",
        "deadline_ms",
        "drop",
        "droppable",
        "ended",
        "facts",
        "held_until_ms",
        "hold_ms",
        "left",
        "online",
        "parts",
        "predicted_ms",
        "refused_for",
        "request",
        "route",
        "router",
        "rows",
        "variant",
    )

    def __init__(self, request: Request, arrived_ms: float, router: int = 0) -> None:
        self.request, self.arrived_ms, self.rows = request, arrived_ms, request.rows
        self.router, self.online, self.refused_for = router, False, "full"
        self.counted_by: Quotas | None = None
        self.hold_ms = self.held_until_ms = 0.0
        self.deadline_ms = arrived_ms + request.budget_ms
        self.route = self.variant = ""
        self.predicted_ms = self.drop = 0.0
        self.droppable, self.left = True, False
        self.facts: RouteFacts | None = None
        self.parts = 1
        self.ended: Outcome | None = None

    @property
    def owner(self) -> SimulatedRequest:
        return self

    def let_go(self) -> None:
        """Its caller waits no longer: it does not count as in flight any more."""
        if self.counted_by is not None:
            self.counted_by.leave(self.request.tenant)
            self.counted_by = None


class ItemOwner(Protocol):
    """What has parts: a request, a queued job that is rescued, or a shadow."""

    parts: int
    left: bool

    @property
    def rows(self) -> int: ...

    @property
    def deadline_ms(self) -> float: ...

    @property
    def arrived_ms(self) -> float: ...

    @property
    def droppable(self) -> bool: ...

    @property
    def predicted_ms(self) -> float: ...

    @property
    def owner(self) -> ItemOwner: ...


class RequestPart:
    """A piece of a request that has more rows than a batch."""

    __slots__ = ("owner", "rows")

    predicted_ms = 0.0

    def __init__(self, owner: ItemOwner, rows: int) -> None:
        self.owner, self.rows = owner, rows

    @property
    def deadline_ms(self) -> float:
        return self.owner.deadline_ms

    @property
    def arrived_ms(self) -> float:
        return self.owner.arrived_ms

    @property
    def droppable(self) -> bool:
        return self.owner.droppable

    @property
    def left(self) -> bool:
        return self.owner.left


class BackgroundWork:
    """Work that no caller waits for: a queued job that is rescued, or a shadow. ``over`` is called with how
    it ended."""

    __slots__ = ("_over", "arrived_ms", "deadline_ms", "left", "parts", "rows")

    predicted_ms, droppable = 0.0, True

    def __init__(
        self, rows: int, arrived_ms: float, deadline_ms: float, over: Callable[[Outcome], None]
    ) -> None:
        self.rows, self.arrived_ms, self.deadline_ms = rows, arrived_ms, deadline_ms
        self._over, self.left, self.parts = over, False, 1

    @property
    def owner(self) -> BackgroundWork:
        return self

    def over(self, outcome: Outcome) -> None:
        self._over(outcome)


class ProbeRow:
    """The router's own row: nobody asked for it, and nobody waits for the answer."""

    rows, deadline_ms, arrived_ms, predicted_ms = 1, math.inf, 0.0, 0.0
    droppable = left = False
    owner = None


SimulatedItem = ItemOwner | RequestPart | ProbeRow
