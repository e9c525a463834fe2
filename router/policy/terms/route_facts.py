"""What the routes of a policy may ask about one request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_NONE: Mapping[Any, Any] = {}


class RouteFacts(NamedTuple):
    """What one request asks for, and who asks.

    ``variant`` is set where the caller pins one; ``tenant`` is empty for a caller without one. Header names
    are in lower case. ``epoch_s`` is the time of day's source, wall clock; ``draw`` is in [0, 1) and picks
    the side of a split. ``row_cost`` is what it costs online, in rows of usual size
    (`router.scheduling.row_cost`); 0 means ``rows``. ``spent_ms`` of the budget went by before the decision.
    A caller may leave out what its policy does not ask about (`Policy.asks_for`).
    """

    model: str
    rows: int
    budget_ms: float
    variant: str | None = None
    tenant: str = ""
    headers: Mapping[bytes, bytes] = _NONE
    parameters: Mapping[str, Any] = _NONE
    epoch_s: float = 0.0
    draw: float = 0.0
    row_cost: int = 0
    spent_ms: float = 0.0

    @property
    def left_ms(self) -> float:
        """What is left of the budget. Routes ask for ``budget_ms``, what the caller has named."""
        return self.budget_ms - self.spent_ms
