"""All requests that a policy can tell apart, as boxes: for each condition's quantity a set of probes. Pure.

Conditions change only at the values that the policy names, so one probe for each of these and one between
each two stand for all the rest. A route takes a box (its conditions are a conjunction); what earlier routes
leave of it is found by cutting their boxes out, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from router.policy import Policy
from router.policy.conditions import When, is_among
from router.units import MAX_BUDGET_MS, format_ms

#: For each quantity the indexes of its probes.
Box = Mapping[str, frozenset[int]]
#: Where a policy cuts its requests into more pieces than this, the rest is not looked at.
_MAX_PIECES = 5_000


@dataclass(frozen=True, slots=True)
class Probe:
    """One value that stands for others: what it is, what it is called, and where its kind ends."""

    value: Any
    text: str
    top: float = 0.0


@dataclass(frozen=True, slots=True)
class _Absent:
    """A header or a parameter that the request does not have."""


ABSENT, OTHER = _Absent(), object()


class Space:
    """The probes of one policy, and the boxes of its routes."""

    def __init__(self, policy: Policy) -> None:
        self.probes: dict[str, Sequence[Probe]] = dict(_probes(policy))
        self.all: Box = {name: frozenset(range(len(probes))) for name, probes in self.probes.items()}
        self.boxes = {route.name: self._box(route.when) for route in policy.routes}

    def _box(self, when: When) -> Box:
        box = dict(self.all)
        for name, holds in _conditions(when):
            box[name] = frozenset(i for i, probe in enumerate(self.probes[name]) if holds(probe.value))
        return box

    def left_of(self, box: Box, others: Iterable[Box]) -> list[Box]:
        """What is left of a box when others are cut out: boxes that do not overlap."""
        pieces = [box] if all(box.values()) else []
        for other in others:
            pieces = [left for piece in pieces for left in _without(piece, other)]
            if len(pieces) > _MAX_PIECES:
                return pieces
        return pieces

    def overlap(self, one: Box, other: Box) -> bool:
        return all(one[name] & other[name] for name in one)

    def values(self, box: Box, name: str) -> list[Probe]:
        """The probes of one quantity that are in the box, in order."""
        return [self.probes[name][i] for i in sorted(box[name])]


def _without(box: Box, other: Box) -> Iterator[Box]:
    if any(not box[name] & other[name] for name in box):
        yield box
        return
    rest = dict(box)
    for name in box:
        outside = rest[name] - other[name]
        if outside:
            yield {**rest, name: outside}
            rest[name] &= other[name]


def _conditions(when: When) -> Iterator[tuple[str, Callable[[Any], bool]]]:
    """Each quantity that a route has a condition on, and the condition."""
    if when.model is not None:
        yield "model", when.model.__contains__
    if when.tenant is not None:
        yield "tenant", when.tenant.__contains__
    if when.budget is not None:
        yield "budget", when.budget.holds
    if when.rows is not None:
        yield "rows", when.rows.holds
    if when.time is not None:
        yield "time", when.time.holds
    for name, texts in when.header.items():
        yield f"header {name.lower()}", _one_of(texts)
    for name, scalars in when.parameter.items():
        yield f"parameter {name}", _one_of(scalars)


def _one_of(wanted: tuple[Any, ...]) -> Callable[[Any], bool]:
    return lambda value: value is not ABSENT and is_among(value, wanted)


def _probes(policy: Policy) -> Iterator[tuple[str, Sequence[Probe]]]:
    whens = [route.when for route in policy.routes]
    yield "model", [Probe(name, repr(name)) for name in policy.models]
    yield "tenant", [Probe("", "none"), *(Probe(name, repr(name)) for name in policy.tenants)]
    yield "budget", _budgets({bound for when in whens if when.budget for _, bound in when.budget.bounds})
    rows = {bound for when in whens if when.rows for _, bound in when.rows.bounds}
    yield "rows", _rows(rows, policy.limits.rows)
    if any(when.time for when in whens):
        yield "time", _times(whens)
    named: dict[str, list[Any]] = {}
    for when in whens:
        for name, texts in when.header.items():
            named.setdefault(f"header {name.lower()}", []).extend(texts)
        for name, scalars in when.parameter.items():
            named.setdefault(f"parameter {name}", []).extend(scalars)
    for name, values in named.items():
        distinct = {(type(value), value): value for value in values if value != "*"}.values()
        yield (
            name,
            [
                Probe(ABSENT, "absent"),
                Probe(OTHER, "another"),
                *(Probe(value, repr(value)) for value in distinct),
            ],
        )


def _budgets(bounds: Iterable[float]) -> list[Probe]:
    edges = sorted(bound for bound in bounds if 0.0 < bound < MAX_BUDGET_MS)
    probes, low_ms, low = [], 0.0, ""
    for edge in [*edges, MAX_BUDGET_MS]:
        last = edge == MAX_BUDGET_MS
        text = (f"above {low}" if low else "all budgets") if last else f"below {format_ms(edge)}"
        if low and not last:
            text = f"between {low} and {format_ms(edge)}"
        probes.append(Probe((low_ms + edge) / 2.0, text, edge))
        if not last:
            probes.append(Probe(edge, f"of {format_ms(edge)}", edge))
        low_ms, low = edge, format_ms(edge)
    return probes


def _rows(bounds: Iterable[float], most: int) -> list[Probe]:
    near = {int(bound) + step for bound in bounds for step in (-1, 0, 1)} | {1, most}
    return [Probe(rows, f"{rows} rows") for rows in sorted(near) if 1 <= rows <= most]


def _times(whens: Iterable[When]) -> list[Probe]:
    """The moments of one winter's and one summer's day at which a condition begins or ends to hold."""
    probes = []
    for month in (1, 7):
        midnight = datetime(2026, month, 15, tzinfo=UTC)
        edges = {midnight}
        for time in (when.time for when in whens if when.time):
            for minute in range(24 * 60):
                at = midnight + timedelta(minutes=minute)
                if time.holds(at.timestamp()) != time.holds((at - timedelta(minutes=1)).timestamp()):
                    edges.add(at)
        probes += [Probe(at.timestamp(), f"{at:%H:%M} UTC") for at in sorted(edges)]
    return probes
