"""Which way a request would take, and why: the production decision on an idle or a loaded server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.policy import Policy, Route
from router.policy.facts import MeasuredVariant
from router.scheduling import prediction
from router.scheduling.admission import Enqueue, Reject, RouteFacts, RunOnline, decide
from router.scheduling.headroom import initial_headroom_ms
from router.scheduling.policy_check import hop_ms
from router.scheduling.prediction import BatchLoad, ModelLoad, OnlineLoad
from router.scheduling.tuning import MARGIN_START
from router.units import format_ms


def explain(
    policy: Policy,
    variants: Mapping[str, MeasuredVariant],
    facts: RouteFacts,
    *,
    online_rows: int = 0,
    queued_rows: int = 0,
) -> dict[str, Any]:
    """The decision for ``facts`` with so many rows waiting on each side, as plain values.

    ``variants`` are those of the model asked for. Members: ``route``, ``goes`` (online, batch or refused),
    ``variant``, ``predicted_ms``, ``reason``, ``retry_after_s``; ``passed``, the routes before it and why
    none of them takes the request; ``split`` and ``shadow``, the shares of variants where the route has
    them; and ``options``, what each variant would take.
    """
    load = _load(policy, variants, facts.model, online_rows, queued_rows)
    route = policy.route(facts)
    explanation = _as_values(_barred(policy, facts, route) or decide(facts, policy, load, 0.0), policy, facts)
    explanation["passed"] = passed(policy, facts)
    if route.split is not None:
        whole = sum(route.split.values())
        explanation["split"] = {name: weight / whole for name, weight in route.split.items()}
    if route.shadow is not None:
        explanation["shadow"] = {route.shadow.variant: route.shadow.share}
    explanation["options"] = _options(load, facts.rows)
    return explanation


def _as_values(decision: RunOnline | Enqueue | Reject, policy: Policy, facts: RouteFacts) -> dict[str, Any]:
    explanation: dict[str, Any] = {"route": decision.route, "reason": decision.reason}
    match decision:
        case RunOnline():
            explanation |= {
                "goes": "online",
                "variant": decision.variant,
                "predicted_ms": decision.predicted_ms,
            }
        case Enqueue():
            section = policy.models[facts.model].batch
            variant = decision.variant or (section.variant if section else None)
            explanation |= {"goes": "batch", "variant": variant, "predicted_ms": decision.predicted_ms}
        case Reject():
            explanation |= {"goes": "refused", "retry_after_s": decision.retry_after_s}
    return explanation


def _barred(policy: Policy, facts: RouteFacts, route: Route) -> Reject | None:
    """What is refused before any route is looked at."""
    tenant = policy.tenants.get(facts.tenant)
    if tenant is not None and tenant.models is not None and facts.model not in tenant.models:
        reason = f"tenant {facts.tenant!r} may not use model {facts.model!r}"
        return Reject("unserved", None, route.name, reason)
    if facts.rows > policy.limits.rows:
        reason = f"{facts.rows} rows in one request; the policy's limits.rows is {policy.limits.rows}"
        return Reject("unserved", None, route.name, reason)
    return None


def passed(policy: Policy, facts: RouteFacts) -> list[dict[str, Any]]:
    """The routes before the one that takes ``facts``, each with the conditions that do not hold, in words."""
    taken = policy.route(facts).name
    found = []
    for route in policy.routes:
        if route.name == taken:
            break
        found.append({"route": route.name, "why": list(route.when.mismatches(facts))})
    return found


def _load(
    policy: Policy, variants: Mapping[str, MeasuredVariant], model: str, online_rows: int, queued_rows: int
) -> ModelLoad:
    section = policy.models[model]
    online: OnlineLoad | None = None
    batch: BatchLoad | None = None
    if section.online:
        best_first = sorted(section.online.variants, key=lambda name: variants[name].quality_drop)
        known = {name: variants[name] for name in best_first}
        waiting_ms = known[best_first[0]].profile.predict_ms(online_rows) if online_rows else 0.0
        # As a router sees it that has just started, and has learnt no margin yet.
        headroom_ms = initial_headroom_ms(section.online.in_time, known[best_first[0]].profile.bound_ms(1))
        online = OnlineLoad(
            known,
            section.online.replicas,
            0.0,
            waiting_ms,
            hop_ms(section),
            prediction_margin=MARGIN_START,
            headroom_ms=headroom_ms,
        )
    if section.batch:
        batch = prediction.batch_load(
            variants[section.batch.variant],
            max(1, section.batch.worker_count),
            section.batch.max_batch,
            queued_rows,
            None,
        )
    return ModelLoad(online, batch)


def _options(load: ModelLoad, rows: int) -> list[dict[str, Any]]:
    options = []
    if load.online:
        for name, variant in load.online.variants.items():
            predicted = prediction.online_ms(load.online, name, rows)
            options.append(_option("online", name, predicted, variant))
    if isinstance(load.batch, BatchLoad):
        predicted = prediction.batch_ms(load.batch, rows)
        options.append(_option("batch", load.batch.variant.name, predicted, load.batch.variant))
    return options


def _option(path: str, name: str, predicted_ms: float, variant: MeasuredVariant) -> dict[str, Any]:
    return {
        "path": path,
        "variant": name,
        "predicted_ms": predicted_ms,
        "quality_drop": variant.quality_drop,
    }


def sentence(explanation: Mapping[str, Any]) -> str:
    """For a person."""
    if explanation["goes"] == "refused":
        again = (
            f"; try again in {explanation['retry_after_s']:.3g} s"
            if explanation["retry_after_s"] is not None
            else ""
        )
        head = f"route {explanation['route']!r}: refused: {explanation['reason']}{again}"
    else:
        head = (
            f"route {explanation['route']!r}: {explanation['goes']}, variant {explanation['variant']!r}, "
            f"predicted {format_ms(explanation['predicted_ms'])}: {explanation['reason']}"
        )
    lines = [
        f"  {option['path']:<7} {option['variant']:<20} {format_ms(option['predicted_ms']):>8}"
        f"   quality drop {option['quality_drop']:g}"
        for option in explanation["options"]
    ]
    shares = [
        f"  {kind}: " + ", ".join(f"{name} {share:.3g}%" for name, share in shown.items())
        for kind in ("split", "shadow")
        if (shown := {name: share * 100.0 for name, share in explanation.get(kind, {}).items()})
    ]
    before = [f"  not {other['route']!r}: {'; '.join(other['why'])}" for other in explanation["passed"]]
    return "\n".join([head, *before, *shares, *lines])
