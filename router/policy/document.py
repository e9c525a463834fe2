"""The whole policy file. A `Policy` is a value; relative paths count from the working directory."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any

from pydantic import Field, model_validator

from optimizers.files.problems import PlacedError
from router.policy.names import misnamed
from router.policy.sections import (
    CorsSection,
    DefaultsSection,
    LimitsSection,
    LogsSection,
    ModelSection,
    RedisSection,
    Route,
    Shadow,
)
from router.policy.tenants import Tenant, TenantLimits
from router.policy.terms.route_facts import RouteFacts
from router.policy.terms.values import Name, Section


class Policy(Section):
    """The whole file. Routes are tried in order; a request that none takes goes to ``auto``."""

    models: Annotated[dict[Name, ModelSection], Field(min_length=1)]
    """The models by name. Example: ``{digits: {artifacts: artifacts/digits, online: {variants:
    [int8]}}}``"""
    routes: tuple[Route, ...] = ()
    """The routes, tried in order. Example: ``[{name: bulk, when: {budget: "> 30s"}, to: batch}]``"""
    tenants: dict[Name, Tenant] = Field(default_factory=dict)
    """Who may ask, by name. As soon as one has a key, every caller needs one. Example: ``{acme: {rate:
    100/s}}``"""
    defaults: DefaultsSection = DefaultsSection()
    """What holds where a request does not say. Example: ``{budget: 1s}``"""
    limits: LimitsSection = LimitsSection()
    """Bounds of requests and queues. Example: ``{body: 16MiB}``"""
    redis: RedisSection = RedisSection()
    """The queue's server. Example: ``{fsync: everysec}``"""
    logs: LogsSection = LogsSection()
    """The log of requests. Example: ``{share: 1%}``"""
    cors: CorsSection = CorsSection()
    """Pages that may call the server from a browser. Example: ``{origins: [https://app.example]}``"""

    @model_validator(mode="after")
    def _consistent(self) -> Policy:
        if problems := list(misnamed(self.models, self.routes, self.tenants)):
            raise PlacedError(problems)
        return self

    @property
    def queued_models(self) -> tuple[str, ...]:
        return tuple(name for name, model in self.models.items() if model.batch)

    @property
    def queue_settings(self) -> dict[str, Any]:
        """Fields of `workers.queue.settings.QueueSettings` on which all who use a queue must agree."""
        limits, each = self.limits.queue, self.limits.tenant.queue
        return {
            "max_jobs": limits.jobs,
            "max_bytes": limits.bytes,
            "tenant_jobs": each.jobs,
            "tenant_bytes": each.bytes,
            "bounds": {
                name: (tenant.queue.jobs, tenant.queue.bytes)
                for name, tenant in self.tenants.items()
                if tenant.queue.jobs or tenant.queue.bytes
            },
            "weights": {name: tenant.weight for name, tenant in self.tenants.items() if tenant.weight != 1.0},
            "keep_ms": int(self.defaults.results.keep),
        }

    @cached_property
    def asks_for(self) -> frozenset[str]:
        """The fields of `RouteFacts` that a caller must fill because a route depends on them, beyond model,
        budget, tenant and rows (``headers``, ``parameters``, ``epoch_s``, ``draw``)."""
        return frozenset(field for route in self.routes for field in route.asks_for)

    @property
    def secured(self) -> bool:
        """Whether callers must bring a key: as soon as any tenant has one."""
        return any(tenant.keys for tenant in self.tenants.values())

    @cached_property
    def shadows(self) -> dict[str, Shadow]:
        """The shadows by their route's name."""
        return {route.name: route.shadow for route in self.routes if route.shadow}

    @cached_property
    def limits_tenants(self) -> bool:
        """Whether any caller's requests are counted at all."""
        limits = (self.limits.tenant, *self.tenants.values())
        return any(one.rate or one.row_rate or one.in_flight for one in limits)

    def limits_of(self, tenant: str) -> TenantLimits:
        """What a tenant may ask for: its own limits, else those of ``limits.tenant``."""
        own, each = self.tenants.get(tenant), self.limits.tenant
        if own is None:
            return each
        given = {
            name: value for name in TenantLimits.model_fields if (value := getattr(own, name)) is not None
        }
        return each.model_copy(update=given)

    def route(self, facts: RouteFacts) -> Route:
        """The first route whose conditions hold, or the implicit last one."""
        for route in self.routes:
            if route.when.holds(facts):
                return route
        return DEFAULT_ROUTE


DEFAULT_ROUTE = Route(name="default", to="auto")
