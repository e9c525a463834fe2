"""Conditions on the model and on the tenant: one name or several of those that the policy has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

from router.policy.conditions.condition import Known, RouteCondition, SampleRequest, Samples, alternatives
from router.policy.terms.route_facts import RouteFacts
from router.policy.terms.values import Names


class ModelCondition(RouteCondition[Names]):
    """The model that is asked for: a name of ``models``, or a list of names."""

    NAMES, EXAMPLE = "models", "[digits, words]"

    def holds(self, facts: RouteFacts) -> bool:
        return facts.model in self.root

    def mismatches(self, facts: RouteFacts) -> Iterator[str]:
        if not self.holds(facts):
            yield f"model is {facts.model!r}, not {alternatives(self.root)}"

    def by_quantity(self) -> Iterator[tuple[str, Self]]:
        yield "model", self

    @classmethod
    def samples(cls, conditions: Sequence[Self], known: Known) -> Samples:
        yield "model", [SampleRequest({"model": name}, repr(name)) for name in known.models]


class TenantCondition(RouteCondition[Names]):
    """Who asks: a name of ``tenants``, or a list of names."""

    NAMES, EXAMPLE = "tenants", "acme"

    def holds(self, facts: RouteFacts) -> bool:
        return facts.tenant in self.root

    def mismatches(self, facts: RouteFacts) -> Iterator[str]:
        if not self.holds(facts):
            given = repr(facts.tenant) if facts.tenant else "none"
            yield f"tenant is {given}, not {alternatives(self.root)}"

    def by_quantity(self) -> Iterator[tuple[str, Self]]:
        yield "tenant", self

    @classmethod
    def samples(cls, conditions: Sequence[Self], known: Known) -> Samples:
        named = [SampleRequest({"tenant": name}, repr(name)) for name in known.tenants]
        yield "tenant", [SampleRequest({"tenant": ""}, "none"), *named]
