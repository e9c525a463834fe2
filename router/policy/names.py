"""Names in a policy that stand for nothing in it: where each stands in the file, and the nearest known."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from optimizers.files.problems import Place, hint
from router.policy.conditions.when import CONDITIONS
from router.policy.sections import ModelSection, Route
from router.policy.tenants import Tenant


def misnamed(
    models: Mapping[str, ModelSection], routes: Iterable[Route], tenants: Mapping[str, Tenant]
) -> Iterator[tuple[Place, str]]:
    """Names that are used and not given, and names and keys that are given twice."""
    route_names: set[str] = set()
    for index, route in enumerate(routes):
        if route.name in route_names:
            text = f"two routes are named {route.name!r}; give each its own name"
            yield ("routes", index, "name"), text
        route_names.add(route.name)
        for place, text in (*_in_conditions(route, models, tenants), *_in_variants(route, models)):
            yield ("routes", index, *place), f"route {route.name!r} names {text}"
    hashes: dict[str, str] = {}
    for name, tenant in tenants.items():
        for model in tenant.models or ():
            if model not in models:
                text = f"tenant {name!r} may use model {model!r}, which is not in 'models'"
                yield ("tenants", name, "models"), f"{text}; {hint(model, models)}"
        for key in tenant.keys:
            other = hashes.setdefault(key, name)
            if other != name:
                text = f"tenants {other!r} and {name!r} have the same key; a key tells them apart"
                yield ("tenants", name, "keys"), text


def _in_conditions(
    route: Route, models: Collection[str], tenants: Collection[str]
) -> Iterator[tuple[Place, str]]:
    sections = {"models": models, "tenants": tenants}
    for key, kind in CONDITIONS.items():
        condition, section = getattr(route.when, key), kind.NAMES
        if section is None or condition is None:
            continue
        known = sections[section]
        for name in condition.root:
            if name not in known:
                text = f"{section[:-1]} {name!r}, which is not in {section!r}; {hint(name, known)}"
                yield ("when", key), text


def _in_variants(route: Route, models: Mapping[str, ModelSection]) -> Iterator[tuple[Place, str]]:
    chosen = route.when.model.root if route.when.model else models
    known = {variant for name in chosen if name in models for variant in models[name].variants}
    named: list[tuple[Place, str]] = [
        *((("variants",), variant) for variant in route.variants or ()),
        *((("split", variant), variant) for variant in route.split or ()),
        *([(("shadow", "variant"), route.shadow.variant)] if route.shadow else ()),
    ]
    for place, variant in named:
        if known and variant not in known:
            yield place, f"variant {variant!r}, which none of its models serves; {hint(variant, known)}"
