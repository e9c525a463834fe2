"""All requests that a policy can tell apart, as boxes: for each quantity a set of sample requests. Pure.

Conditions change only at the values that the policy names, so one sample for each of these and one between
each two stand for all the rest. A route takes a box (its conditions are a conjunction); what earlier routes
leave of it is found by cutting their boxes out, exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from router.policy.conditions.condition import Known, SampleRequest
from router.policy.conditions.when import CONDITIONS, When
from router.policy.document import Policy

#: For each quantity the indexes of its samples.
Box = Mapping[str, frozenset[int]]
#: Where a policy cuts its requests into more pieces than this, the rest is not looked at.
_MAX_PIECES = 5_000


class Space:
    """The samples of one policy, and the boxes of its routes."""

    def __init__(self, policy: Policy) -> None:
        self.samples: dict[str, Sequence[SampleRequest]] = dict(_samples(policy))
        self.all: Box = {name: frozenset(range(len(samples))) for name, samples in self.samples.items()}
        self.boxes = {route.name: self._box(route.when) for route in policy.routes}

    def _box(self, when: When) -> Box:
        box = dict(self.all)
        for condition in when.conditions:
            for name, part in condition.by_quantity():
                samples = enumerate(self.samples[name])
                box[name] &= frozenset(i for i, sample in samples if part.holds(sample.request))
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

    def values(self, box: Box, name: str) -> list[SampleRequest]:
        """The samples of one quantity that are in the box, in order."""
        return [self.samples[name][i] for i in sorted(box[name])]


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


def _samples(policy: Policy) -> Iterator[tuple[str, Sequence[SampleRequest]]]:
    known = Known(policy.models, policy.tenants, policy.limits.rows)
    given = [condition for route in policy.routes for condition in route.when.conditions]
    for kind in CONDITIONS.values():
        yield from kind.samples([condition for condition in given if isinstance(condition, kind)], known)
