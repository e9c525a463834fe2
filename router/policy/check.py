"""What a policy would never do, or could never keep: found on the policy and the measured profiles alone.

Conditions on budget and model change only at the bounds that the policy names, so it is enough to look at
each bound and between each two: no budget is overlooked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from router.estimate import Variant
from router.policy import DEFAULT_ROUTE, Policy, Route
from router.units import MAX_BUDGET_MS, format_ms

#: What a call costs beside the model, where no deployment was asked.
HOP_MS = 1.0

Variants = Mapping[str, Mapping[str, Variant]]


@dataclass(frozen=True, slots=True)
class Finding:
    """``error``: requests that match can only be refused; ``warning``: probably not what was meant;
    ``note``: worth knowing. ``where`` names the route."""

    level: Literal["error", "warning", "note"]
    where: str
    text: str


@dataclass(frozen=True, slots=True)
class _Region:
    """Budgets between two bounds, or one bound itself; ``probe_ms`` is one of them."""

    probe_ms: float
    text: str
    top_ms: float


def check(policy: Policy, variants: Variants) -> list[Finding]:
    """Everything found, in the order of the routes."""
    regions = _regions(policy)
    taken = {
        (model, region): policy.route(model, region.probe_ms).name
        for model in policy.models
        for region in regions
    }
    found: list[Finding] = []
    for route in policy.routes:
        mine = {key: name for key, name in taken.items() if route.when.holds(key[0], key[1].probe_ms)}
        if not mine:
            found.append(Finding("warning", route.name, "can never match: its conditions exclude each other"))
        elif route.name not in mine.values():
            others = ", ".join(sorted({repr(name) for name in mine.values()}))
            found.append(
                Finding("warning", route.name, f"can never match: {others} before it take all that it would")
            )
        for model in policy.models:
            caught = [
                region for (name, region), taker in taken.items() if (name, taker) == (model, route.name)
            ]
            if caught:
                found += _serve(policy, route, model, variants[model], caught)
    found += _gaps(policy, taken, regions)
    return found


def _regions(policy: Policy) -> list[_Region]:
    bounds = {bound for route in policy.routes if route.when.budget for _, bound in route.when.budget.bounds}
    edges = sorted(bound for bound in bounds if 0.0 < bound < MAX_BUDGET_MS)
    regions, low_ms, low = [], 0.0, ""
    for edge in [*edges, MAX_BUDGET_MS]:
        last = edge == MAX_BUDGET_MS
        text = (f"above {low}" if low else "all budgets") if last else f"below {format_ms(edge)}"
        if low and not last:
            text = f"between {low} and {format_ms(edge)}"
        regions.append(_Region((low_ms + edge) / 2.0, text, edge))
        if not last:
            regions.append(_Region(edge, f"of {format_ms(edge)}", edge))
        low_ms, low = edge, format_ms(edge)
    return regions


def _serve(
    policy: Policy, route: Route, model: str, variants: Mapping[str, Variant], caught: Sequence[_Region]
) -> Iterator[Finding]:
    """Whether the requests of one model that take this route can be served at all, and in time."""
    served = policy.models[model]
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
    least_ms = min(variant.profile.bound_ms(1) for variant in allowed) + HOP_MS
    if max(region.top_ms for region in caught) < least_ms:
        yield Finding(
            "error",
            route.name,
            f"no variant of {model!r} can answer in time: the fastest takes {format_ms(least_ms)} "
            "for one row on an idle replica",
        )
    elif route.to == "online":
        yield Finding("note", route.name, f"{model!r}: budgets below {format_ms(least_ms)} cannot be met")


def _gaps(
    policy: Policy, taken: Mapping[tuple[str, _Region], str], regions: Sequence[_Region]
) -> Iterator[Finding]:
    for model in policy.models:
        loose = [region.text for region in regions if taken[model, region] == DEFAULT_ROUTE.name]
        if loose:
            yield Finding(
                "note",
                DEFAULT_ROUTE.name,
                f"{model!r}: no route takes budgets {', '.join(loose)}; they go where it is cheapest (auto)",
            )
