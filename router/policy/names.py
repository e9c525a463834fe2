"""Names in a policy that stand for nothing in it: where each stands in the file, and the nearest known."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.policy.sections import Policy, Route

#: Where a value stands: keys and indexes from the top of the file.
Place = tuple[str | int, ...]


class Misnamed(ValueError):
    """A policy whose sections do not fit together; ``found`` has the place and sentence of each problem."""

    def __init__(self, found: Collection[tuple[Place, str]]) -> None:
        self.found = tuple(found)
        super().__init__("; ".join(text for _, text in found))


def misnamed(policy: Policy) -> Iterator[tuple[Place, str]]:
    """Names that are used and not given, and names and keys that are given twice."""
    seen: set[str] = set()
    for index, route in enumerate(policy.routes):
        if route.name in seen:
            text = f"two routes are named {route.name!r}; give each its own name"
            yield ("routes", index, "name"), text
        seen.add(route.name)
        for place, text in _in_route(policy, route):
            yield ("routes", index, *place), f"route {route.name!r} names {text}"
    hashes: dict[str, str] = {}
    for name, tenant in policy.tenants.items():
        for model in tenant.models or ():
            if model not in policy.models:
                text = f"tenant {name!r} may use model {model!r}, which is not in 'models'"
                yield ("tenants", name, "models"), f"{text}; {_hint(model, policy.models)}"
        for key in tenant.keys:
            other = hashes.setdefault(key, name)
            if other != name:
                text = f"tenants {other!r} and {name!r} have the same key; a key tells them apart"
                yield ("tenants", name, "keys"), text


def _in_route(policy: Policy, route: Route) -> Iterator[tuple[Place, str]]:
    for model in route.when.model or ():
        if model not in policy.models:
            text = f"model {model!r}, which is not in 'models'; {_hint(model, policy.models)}"
            yield ("when", "model"), text
    for tenant in route.when.tenant or ():
        if tenant not in policy.tenants:
            text = f"tenant {tenant!r}, which is not in 'tenants'; {_hint(tenant, policy.tenants)}"
            yield ("when", "tenant"), text
    models = [policy.models[name] for name in route.when.model or policy.models if name in policy.models]
    known = {variant for model in models for variant in model.variants}
    named: list[tuple[Place, str]] = [
        *((("variants",), variant) for variant in route.variants or ()),
        *((("split", variant), variant) for variant in route.split or ()),
        *([(("shadow", "variant"), route.shadow.variant)] if route.shadow else ()),
    ]
    for place, variant in named:
        if known and variant not in known:
            yield place, f"variant {variant!r}, which none of its models serves; {_hint(variant, known)}"


def _hint(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known here: {', '.join(sorted(known))}" if known else "there is none yet"
