"""``when``: every condition that a route may have, by its key."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from router.policy.conditions.bounds import BudgetCondition, RowsCondition
from router.policy.conditions.clock import TimeCondition
from router.policy.conditions.condition import RouteCondition
from router.policy.conditions.members import HeaderCondition, ParameterCondition
from router.policy.conditions.names import ModelCondition, TenantCondition
from router.policy.terms.route_facts import RouteFacts
from router.policy.terms.values import Section


class When(Section):
    """The conditions of a route; all that are given must hold."""

    model: ModelCondition | None = None
    budget: BudgetCondition | None = None
    tenant: TenantCondition | None = None
    rows: RowsCondition | None = None
    time: TimeCondition | None = None
    header: HeaderCondition | None = None
    parameter: ParameterCondition | None = None

    @cached_property
    def conditions(self) -> tuple[RouteCondition[Any], ...]:
        """Those that are given, in the order in which they are tried."""
        given = (getattr(self, key) for key in type(self).model_fields)
        return tuple(condition for condition in given if condition is not None and condition.root)

    def holds(self, facts: RouteFacts) -> bool:
        for condition in self.conditions:  # noqa: SIM110 -- `all` costs twice as much, on every request
            if not condition.holds(facts):
                return False
        return True

    def mismatches(self, facts: RouteFacts) -> Iterator[str]:
        """Why each condition that does not hold does not, as ``budget is 2s, not <= 250ms``."""
        for condition in self.conditions:
            yield from condition.mismatches(facts)


#: The class of each condition by its key.
CONDITIONS: dict[str, type[RouteCondition[Any]]] = {
    key: next(cls for cls in field.annotation.__args__ if cls is not type(None))  # type: ignore[union-attr]
    for key, field in When.model_fields.items()
}
