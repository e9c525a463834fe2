"""What stands before a decision: who may ask, and how much. The checks and counts are production's own."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence

from router.ingress.semantics import hold_s
from router.policy import Policy
from router.policy.sections import QueueLimits
from router.scheduling.admission import Decision, Enqueue
from router.scheduling.asking import admit, route_facts
from router.scheduling.prediction import ModelLoad
from router.scheduling.rate_limits import Over, Quotas
from router.service.auth import Keyring
from router.simulate.columns import hint
from router.simulate.requests import SimulatedRequest
from router.simulate.workload import Request


class SimulationError(ValueError):
    """What was asked for cannot be simulated; the message says why."""


class Door:
    """One of ``routers``: its quotas, and the way of a request to its decision, as `router.ingress` and
    `router.service.service` have it. ``draw`` gives the random numbers, in [0, 1), that splits are drawn
    with."""

    def __init__(self, policy: Policy, routers: int, draw: Callable[[], float]) -> None:
        self._policy, self._draw = policy, draw
        self._keyring, self._quotas = Keyring(policy.tenants), Quotas(policy.limits_of, routers)

    def take(self, asked: SimulatedRequest, load: Callable[[], ModelLoad], now_ms: float) -> Decision | None:
        """The decision, or None for a request that is refused before there is one; ``asked`` knows why."""
        request, policy = asked.request, self._policy
        if not self._keyring.may_use(request.tenant, request.model):
            asked.refused_for = "forbidden"
            return None
        if policy.limits_tenants:
            if self._quotas.enter(request.tenant, now_ms) is not None:
                asked.refused_for = "quota"
                return None
            # Like the call of a client, it counts until it is answered, or told to come back later.
            asked.counted_by = self._quotas
        if request.rows > policy.limits.rows:
            asked.refused_for = "size"
            return None
        asked.facts = facts = route_facts(
            request, request.rows, request.row_cost, policy, lambda: request.epoch_s or 0.0, self._draw
        )
        decision = admit(facts, policy, self._quotas, load, now_ms)
        if isinstance(decision, Over):
            asked.refused_for = "quota"
            return None
        if isinstance(decision, Enqueue):
            asked.hold_ms = 1_000.0 * hold_s(request.headers, policy.defaults.hold / 1_000.0)
        return decision


def routing_draws(seed: int) -> random.Random:
    """What draws the splits and the shadows of a simulation, and nothing else."""
    return random.Random(f"routing {seed}")


def check(policy: Policy, variants: Mapping[str, Collection[str]], requests: Sequence[Request]) -> None:
    """Raise `SimulationError` for what requests name and the policy does not have, and for what its routes
    ask about and no request says."""
    named = dict.fromkeys((r.model, r.variant, r.tenant) for r in requests)
    for model, variant, tenant in named:
        if model not in policy.models:
            raise SimulationError(
                f"a request for model {model!r}, which the policy does not have; {hint(model, policy.models)}"
            )
        if variant is not None and variant not in variants[model]:
            raise SimulationError(
                f"a request for variant {variant!r} of model {model!r}; {hint(variant, variants[model])}"
            )
        if tenant and tenant not in policy.tenants:
            raise SimulationError(
                f"a request of tenant {tenant!r}, which the policy does not have; "
                f"{hint(tenant, policy.tenants)}"
            )
        if not tenant and policy.secured:
            raise SimulationError(
                "a request without a tenant, and the policy's tenants have keys, so that it would only be "
                "turned away; add a column 'tenant' to the trace, or :tenant=NAME to --mix, with one of "
                f"{', '.join(policy.tenants)}"
            )
    if "epoch_s" in policy.asks_for and any(request.epoch_s is None for request in requests):
        route = next(route for route in policy.routes if "epoch_s" in route.asks_for)
        raise SimulationError(
            f"route {route.name!r} depends on the time of day, which the arrivals do not have; add "
            "--start-at 22:00, or use a trace with dates (2026-01-15T22:00:00Z) or seconds since 1970"
        )


def not_played(policy: Policy) -> list[str]:
    """What the policy says and a simulation leaves out, a sentence each."""
    queue, tenants = policy.limits.queue, (policy.limits.tenant, *policy.tenants.values())
    left_out = []
    if queue.bytes != QueueLimits().bytes or any(one.queue.bytes for one in tenants):
        left_out.append("bounds of a queue in bytes are not reached: a simulated request has no content")
    if policy.limits_tenants and policy.queued_models:
        left_out.append("callers do not ask for queued results, which would count for their tenants' limits")
    return left_out
