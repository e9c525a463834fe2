"""From a request to its decision: what the policy is asked, and the tenant's rows that it counts. Pure.

The service and the simulator both go this way, so that neither can ask or count differently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from router.policy import Policy
from router.policy.terms.route_facts import RouteFacts
from router.scheduling.admission import Decision, Reject, decide
from router.scheduling.prediction import ModelLoad
from router.scheduling.rate_limits import Over, Quotas


class ArrivedRequest(Protocol):
    """A request as it arrived: `router.service.requests.InferenceRequest`, or a simulated one.

    Header names are in lower case.
    """

    @property
    def model(self) -> str: ...

    @property
    def budget_ms(self) -> float: ...

    @property
    def variant(self) -> str | None: ...

    @property
    def tenant(self) -> str: ...

    @property
    def headers(self) -> Mapping[bytes, bytes]: ...

    @property
    def parameters(self) -> Mapping[str, Any]: ...


def route_facts(
    request: ArrivedRequest,
    rows: int,
    row_cost: int,
    policy: Policy,
    epoch_s: Callable[[], float],
    draw: Callable[[], float],
    spent_ms: float = 0.0,
) -> RouteFacts:
    """What ``policy`` is asked. The wall clock ``epoch_s`` and the random ``draw``, in [0, 1), are called
    only where a route depends on them. ``spent_ms`` of the budget went by since the request arrived."""
    asked = policy.asks_for
    if not asked:
        asks = request.model, rows, request.budget_ms, request.variant, request.tenant
        return RouteFacts(*asks, row_cost=row_cost, spent_ms=spent_ms)
    return RouteFacts(
        request.model,
        rows,
        request.budget_ms,
        request.variant,
        request.tenant,
        request.headers,
        request.parameters,
        epoch_s() if "epoch_s" in asked else 0.0,
        draw() if "draw" in asked else 0.0,
        row_cost,
        spent_ms,
    )


def admit(
    facts: RouteFacts, policy: Policy, quotas: Quotas, load: Callable[[], ModelLoad], now_ms: float
) -> Decision | Over:
    """The decision, or what its tenant is over. ``load`` is called only for a request within its quota.

    Only a request that is let in costs its tenant rows.
    """
    if not policy.limits_tenants:
        return decide(facts, policy, load(), now_ms)
    over = quotas.over_rows(facts.tenant, facts.rows, now_ms)
    if over is not None:
        return over
    decision = decide(facts, policy, load(), now_ms)
    if not isinstance(decision, Reject):
        quotas.take_rows(facts.tenant, facts.rows, now_ms)
    return decision
