"""What a policy would never do, or could never keep: found on the policy and the measured profiles alone.

`router.policy.space` says which requests a route takes, whatever its conditions ask: none is overlooked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from router.policy import DEFAULT_ROUTE, ModelSection, Policy, Route
from router.policy.conditions.when import CONDITIONS
from router.policy.facts import MeasuredVariant
from router.policy.space import Box, Space
from router.scheduling.tuning import ASSUMED_HOP_MS
from router.units import format_ms

Variants = Mapping[str, Mapping[str, MeasuredVariant]]


@dataclass(frozen=True, slots=True)
class Finding:
    """``error``: requests that match can only be refused; ``warning``: probably not what was meant;
    ``note``: worth knowing. ``where`` names the route, or the tenant."""

    level: Literal["error", "warning", "note"]
    where: str
    text: str


def check(policy: Policy, variants: Variants) -> list[Finding]:
    """Everything found, in the order of the routes."""
    space = Space(policy)
    findings: list[Finding] = []
    before: list[str] = []
    for route in policy.routes:
        box = space.boxes[route.name]
        left = space.left_of(box, (space.boxes[name] for name in before))
        if not all(box.values()):
            findings.append(
                Finding("warning", route.name, "can never match: its conditions exclude each other")
            )
        elif not left:
            others = ", ".join(sorted(repr(name) for name in before if space.overlap(box, space.boxes[name])))
            findings.append(
                Finding("warning", route.name, f"can never match: {others} before it take all that it would")
            )
        for model, served in policy.models.items():
            mine = [piece for piece in left if _includes(space, piece, model)]
            if mine:
                top_ms = max(sample.budget_ms for piece in mine for sample in space.values(piece, "budget"))
                findings += _serve(served, route, model, variants[model], top_ms)
        before.append(route.name)
    findings += _gaps(policy, space)
    findings += _tenants(policy)
    return findings


def hop_ms(served: ModelSection) -> float:
    """What a call costs beside the model: nothing to speak of where the router runs it itself."""
    return 0.0 if served.online and served.online.in_router else ASSUMED_HOP_MS


def _serve(
    served: ModelSection, route: Route, model: str, variants: Mapping[str, MeasuredVariant], top_ms: float
) -> Iterator[Finding]:
    """Whether the requests of one model that take this route, the longest budget being ``top_ms``, can be
    served at all, and in time."""
    if route.to == "online" and served.online is None:
        yield Finding("error", route.name, f"sends {model!r} online, but the model has no 'online' section")
        return
    if route.to == "batch" and served.batch is None:
        yield Finding(
            "error", route.name, f"sends {model!r} to the queue, but the model has no 'batch' section"
        )
        return
    floor = route.quality.max_drop if route.quality else None
    names = list(served.online.variants) if served.online and route.to != "batch" else []
    if served.batch and route.to != "online":
        names.append(served.batch.variant)
        # A worker loads what a split draws, beside its own.
        names += [name for name in route.split or () if name in variants]
    chosen = [name for name, weight in (route.split or {}).items() if weight > 0] or route.variants
    if chosen is not None:
        missing = ", ".join(name for name in chosen if name not in names and route.to != "batch")
        if missing:
            yield Finding("warning", route.name, f"{model!r} does not serve {missing} there")
        names = [name for name in names if name in chosen]
        if not names:
            yield Finding("error", route.name, f"{model!r} serves none of the route's variants there")
            return
    if route.shadow and (served.online is None or route.shadow.variant not in served.online.variants):
        text = f"{model!r} has no online variant {route.shadow.variant!r} for the shadow"
        yield Finding("error", route.name, text)
    allowed = [
        variants[name]
        for name in dict.fromkeys(names)
        if floor is None or variants[name].quality_drop <= floor
    ]
    if not allowed:
        drops = ", ".join(f"{name} {variants[name].quality_drop:g}" for name in dict.fromkeys(names))
        yield Finding(
            "error",
            route.name,
            f"no variant of {model!r} is within quality.max_drop {floor:g}; they drop {drops}",
        )
        return
    fastest_ms = min(variant.profile.bound_ms(1) for variant in allowed) + hop_ms(served)
    least_ms = fastest_ms * (1.0 + route.margin)
    if top_ms < least_ms:
        yield Finding(
            "error",
            route.name,
            f"no variant of {model!r} can answer in time: the fastest takes {format_ms(least_ms)} "
            "for one row on an idle replica",
        )
    elif route.to == "online":
        yield Finding("note", route.name, f"{model!r}: budgets below {format_ms(least_ms)} cannot be met")


def _gaps(policy: Policy, space: Space) -> Iterator[Finding]:
    *keys, last = (key for key in CONDITIONS if key not in ("model", "budget"))
    loose = space.left_of(space.all, space.boxes.values())
    for i, model in enumerate(policy.models):
        mine = [piece for piece in loose if i in piece["model"]]
        if not mine:
            continue
        everybody: set[str] = set()
        somebody: set[str] = set()
        for piece in mine:
            rest = all(piece[name] == space.all[name] for name in piece if name not in ("model", "budget"))
            budgets = (sample.text for sample in space.values(piece, "budget"))
            (everybody if rest else somebody).update(budgets)
        texts = [kind.text for kind in space.samples["budget"] if kind.text in everybody | somebody]
        what = "any budget" if texts == ["all budgets"] else f"budgets {', '.join(texts)}"
        some = "" if everybody else f" of some requests (by {', '.join(keys)} or {last})"
        yield Finding(
            "note",
            DEFAULT_ROUTE.name,
            f"{model!r}: no route takes {what}{some}; they go where it is cheapest (auto)",
        )


def _includes(space: Space, box: Box, model: str) -> bool:
    return any(sample.facts["model"] == model for sample in space.values(box, "model"))


def _tenants(policy: Policy) -> Iterator[Finding]:
    if not policy.secured:
        return
    for name, tenant in policy.tenants.items():
        if not tenant.keys:
            yield Finding("warning", f"tenant {name}", "has no key, while others do: nobody can be it")
