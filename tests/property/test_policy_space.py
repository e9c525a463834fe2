"""What is found by cutting boxes out of boxes, held against every combination of values tried by itself."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.policy import Policy
from router.policy.space import Space
from router.policy.terms.route_facts import RouteFacts
from router.scheduling.policy_check import check
from tests.support.effort import tries
from tests.unit.policy.test_space import NOT_SHADOWED, SHADOWED, VARIANTS, policy_of

CONDITIONS: dict[str, list[Any]] = {
    "model": ["m", "n", ["m", "n"]],
    "tenant": ["acme", ["acme", "zoo"]],
    "budget": ["<= 1s", "< 1s", "> 1s", ">= 250ms, < 1s"],
    "rows": ["<= 8", "> 8", "> 2, < 4"],
    "time": ["22:00-06:00", "06:00-22:00", "07:00-21:00 Europe/Vienna"],
    "header": [{"X-A": "*"}, {"X-A": "gold"}, {"x-a": ["gold", "tin"]}],
    "parameter": [{"k": True}, {"k": 1}, {"k": "*"}, {"k": True, "l": "*"}],
}
WHEN = st.lists(st.sampled_from(sorted(CONDITIONS)), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: st.sampled_from(CONDITIONS[name]) for name in names})
)


def asks(policy: Policy) -> list[RouteFacts]:
    """A request for every combination of the samples."""
    requests = []
    for samples in itertools.product(*Space(policy).samples.values()):
        facts: dict[str, Any] = {"headers": {}, "parameters": {}}
        for sample in samples:
            for field, value in sample.facts.items():
                facts[field] = facts[field] | value if isinstance(value, dict) else value
        requests.append(RouteFacts(**facts))
    return requests


def tried_one_by_one(policy: Policy) -> None:
    taken = {policy.route(ask).name for ask in asks(policy)}
    found = check(policy, VARIANTS)
    assert {f.where for f in found if "can never match" in f.text} == {r.name for r in policy.routes} - taken
    assert any(f.where == "default" for f in found) == ("default" in taken)


@pytest.mark.parametrize("whens", [*(whens for whens, _ in SHADOWED), *NOT_SHADOWED])
def test_every_combination_tried_one_by_one_says_the_same(whens: list[dict[str, Any]]) -> None:
    policy = policy_of(*whens)
    assert len(asks(policy)) > len(whens)
    tried_one_by_one(policy)


@settings(max_examples=tries(60), deadline=None)
@given(st.lists(WHEN, min_size=1, max_size=4))
def test_random_routes_too(whens: list[dict[str, Any]]) -> None:
    policy = policy_of(*whens)
    tried_one_by_one(policy)
    assert policy.routes
