"""Which way a request would take, and why: the production decision on an idle or a loaded server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router import estimate
from router.decide import Ask, Enqueue, Reject, RunOnline, decide
from router.estimate import BatchLoad, ModelLoad, OnlineLoad, Variant
from router.policy import Policy
from router.policy.check import HOP_MS
from router.units import format_ms


def explain(
    policy: Policy,
    variants: Mapping[str, Variant],
    ask: Ask,
    *,
    online_rows: int = 0,
    queued_rows: int = 0,
) -> dict[str, Any]:
    """The decision for ``ask`` with so many rows waiting on each side, as plain values.

    ``variants`` are those of the model asked for. Members: ``route``, ``goes`` (online, batch or refused),
    ``variant``, ``predicted_ms``, ``reason``, ``retry_after_s``, and ``options``, what each would take.
    """
    load = _load(policy, variants, ask.model, online_rows, queued_rows)
    decision = decide(ask, policy, load, 0.0)
    told: dict[str, Any] = {"route": decision.route, "reason": decision.reason}
    match decision:
        case RunOnline():
            told |= {"goes": "online", "variant": decision.variant, "predicted_ms": decision.predicted_ms}
        case Enqueue():
            section = policy.models[ask.model].batch
            variant = decision.variant or (section.variant if section else None)
            told |= {"goes": "batch", "variant": variant, "predicted_ms": decision.predicted_ms}
        case Reject():
            told |= {"goes": "refused", "retry_after_s": decision.retry_after_s}
    told["options"] = _options(load, ask.rows)
    return told


def _load(
    policy: Policy, variants: Mapping[str, Variant], model: str, online_rows: int, queued_rows: int
) -> ModelLoad:
    section = policy.models[model]
    online: OnlineLoad | None = None
    batch: BatchLoad | None = None
    if section.online:
        best_first = sorted(section.online.variants, key=lambda name: variants[name].quality_drop)
        known = {name: variants[name] for name in best_first}
        waiting_ms = known[best_first[0]].profile.predict_ms(online_rows) if online_rows else 0.0
        online = OnlineLoad(known, section.online.replicas, 0.0, waiting_ms, HOP_MS)
    if section.batch:
        batch = estimate.batch_load(
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
            predicted = estimate.online_ms(load.online, name, rows)
            options.append(_option("online", name, predicted, variant))
    if load.batch:
        predicted = estimate.batch_ms(load.batch, rows)
        options.append(_option("batch", load.batch.variant.name, predicted, load.batch.variant))
    return options


def _option(path: str, name: str, predicted_ms: float, variant: Variant) -> dict[str, Any]:
    return {
        "path": path,
        "variant": name,
        "predicted_ms": predicted_ms,
        "quality_drop": variant.quality_drop,
    }


def sentence(told: Mapping[str, Any]) -> str:
    """For a person."""
    if told["goes"] == "refused":
        again = f"; try again in {told['retry_after_s']:.3g} s" if told["retry_after_s"] is not None else ""
        head = f"route {told['route']!r}: refused: {told['reason']}{again}"
    else:
        head = (
            f"route {told['route']!r}: {told['goes']}, variant {told['variant']!r}, "
            f"predicted {format_ms(told['predicted_ms'])}: {told['reason']}"
        )
    lines = [
        f"  {option['path']:<7} {option['variant']:<20} {format_ms(option['predicted_ms']):>8}"
        f"   quality drop {option['quality_drop']:g}"
        for option in told["options"]
    ]
    return "\n".join([head, *lines])
