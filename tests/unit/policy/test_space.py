"""Which routes leave nothing to which, over every condition, and where requests fall between them."""

from __future__ import annotations

from typing import Any

import pytest

from router.policy import Policy
from router.policy.conditions.when import CONDITIONS
from router.policy.facts import MeasuredVariant
from router.scheduling.policy_check import Finding, check
from tests.support.replica import variant

VARIANTS: dict[str, dict[str, MeasuredVariant]] = {
    "m": {name: variant(name) for name in ("v", "w")},
    "n": {"v": variant("v")},
}
KEY = "sha256:" + "a" * 64


def policy_of(*whens: dict[str, Any], **more: Any) -> Policy:
    models = {
        "m": {"artifacts": "a", "online": {"variants": ["v", "w"]}, "batch": {"variant": "v"}},
        "n": {"artifacts": "a", "online": {"variants": ["v"]}, "batch": {"variant": "v"}},
    }
    routes = [{"name": "abcdef"[i], "to": "auto", "when": when} for i, when in enumerate(whens)]
    given = {"models": models, "tenants": {"acme": {}, "zoo": {}}, "routes": routes} | more
    return Policy.model_validate(given)


def texts(policy: Policy, *levels: str) -> list[str]:
    return [f"{f.where}: {f.text}" for f in check(policy, VARIANTS) if f.level in (levels or ("warning",))]


SHADOWED: list[tuple[list[dict[str, Any]], str]] = [
    ([{"tenant": "acme"}, {"tenant": "acme", "budget": "< 1s"}], "b: can never match: 'a' before it"),
    ([{"tenant": ["acme", "zoo"]}, {"tenant": "zoo"}], "b: can never match: 'a' before it"),
    ([{"header": {"X-A": "*"}}, {"header": {"x-a": "gold"}}], "b: can never match: 'a' before it"),
    ([{"header": {"X-A": ["b", "c"]}}, {"header": {"X-A": "c"}}], "b: can never match: 'a' before it"),
    ([{"parameter": {"k": "*"}}, {"parameter": {"k": True}}], "b: can never match: 'a' before it"),
    ([{"rows": "<= 64"}, {"rows": "> 8, < 32"}], "b: can never match: 'a' before it"),
    ([{"rows": "<= 8"}, {"rows": "> 8"}, {"tenant": "zoo"}], "c: can never match: 'a', 'b' before it"),
    ([{"time": "06:00-22:00"}, {"time": "22:00-06:00"}, {}], "c: can never match: 'a', 'b' before it"),
    ([{"time": "08:00-20:00"}, {"time": "09:00-18:00"}], "b: can never match: 'a' before it"),
    ([{"model": "m"}, {"model": "n"}, {"rows": "> 1"}], "c: can never match: 'a', 'b' before it"),
    (
        [{"tenant": "acme"}, {"budget": "< 1s"}, {"tenant": "acme", "rows": "> 9"}],
        "c: can never match: 'a', 'b' before it",
    ),
    ([{"rows": "> 8, < 9"}], "a: can never match: its conditions exclude each other"),
    ([{"rows": "> 5000"}], "a: can never match: its conditions exclude each other"),
]  # fmt: skip


@pytest.mark.parametrize(("whens", "said"), SHADOWED)
def test_a_route_that_others_leave_nothing_is_named(whens: list[dict[str, Any]], said: str) -> None:
    (warning,) = texts(policy_of(*whens))
    assert warning.startswith(said)


NOT_SHADOWED: list[list[dict[str, Any]]] = [
    [{"tenant": "acme"}, {"tenant": "zoo"}],
    [{"tenant": ["acme", "zoo"]}, {}],  # callers without a tenant
    [{"header": {"X-A": "gold"}}, {"header": {"X-A": "*"}}],
    [{"header": {"X-A": "*"}}, {"header": {"X-B": "*"}}],
    [{"header": {"X-A": "*"}}, {}],
    [{"parameter": {"k": True}}, {"parameter": {"k": 1}}],
    [{"rows": "<= 8"}, {"rows": ">= 8"}],
    [{"rows": "<= 8"}, {"rows": "> 8"}],
    # In summer Vienna's morning is two hours ahead of UTC's.
    [{"time": "07:00-24:00"}, {"time": "08:00-24:00 Europe/Vienna"}],
    [{"tenant": "acme", "rows": "<= 8"}, {"tenant": "acme"}, {"rows": "<= 8"}],
]


@pytest.mark.parametrize("whens", NOT_SHADOWED)
def test_a_route_for_which_something_is_left_is_not(whens: list[dict[str, Any]]) -> None:
    assert texts(policy_of(*whens)) == []


def test_a_gap_that_only_some_fall_into_says_so() -> None:
    some = texts(policy_of({"model": "n"}, {"model": "m", "tenant": ["acme", "zoo"]}), "note")
    *keys, last = (key for key in CONDITIONS if key not in ("model", "budget"))
    assert {"tenant", "rows", "time", "header", "parameter"} <= {*keys, last}
    assert some == [
        f"default: 'm': no route takes any budget of some requests (by {', '.join(keys)} or {last}); "
        "they go where it is cheapest (auto)"
    ]
    assert texts(policy_of({"tenant": "acme"}, {}), "note") == []


def test_a_tenant_without_a_key_among_those_with_one_can_be_nobody() -> None:
    tenants = {"acme": {"keys": [KEY]}, "zoo": {}}
    assert Finding("warning", "tenant zoo", "has no key, while others do: nobody can be it") in check(
        policy_of(tenants=tenants), VARIANTS
    )
    assert texts(policy_of(tenants={"acme": {}, "zoo": {}})) == []


def route(**given: Any) -> Policy:
    return policy_of(routes=[{"name": "a", "to": "online", "when": {"model": "m"}, **given}])


@pytest.mark.parametrize(
    ("policy", "level", "said"),
    [
        (route(variants="v", quality={"max_drop": 0}), "error", None),
        (route(to="batch", variants="w"), "error", "a: 'm' serves none of the route's variants there"),
        (
            route(margin=9, when={"model": "m", "budget": "<= 50ms"}),
            "error",
            "can answer in time: the fastest",
        ),
        (route(margin=2, when={"model": "m", "budget": "<= 50ms"}), "error", None),
        (route(when={}, variants=["v", "w"]), "warning", "a: 'n' does not serve w there"),
        (route(when={}, shadow={"variant": "w"}), "error", "a: 'n' has no online variant 'w' for the shadow"),
        (route(split={"v": 1, "w": 0}), "error", None),
    ],
)
def test_what_a_route_asks_of_its_variants_is_held_against_what_is_served(
    policy: Policy, level: str, said: str | None
) -> None:
    found = texts(policy, level)
    assert (found == []) if said is None else any(said in text for text in found)


def test_a_policy_of_many_conditions_is_checked_in_no_time() -> None:
    whens = [
        {"tenant": "acme", "rows": f"<= {n}", "budget": f"<= {n}s", "parameter": {f"k{n % 3}": n}}
        for n in range(1, 6)
    ]
    assert texts(policy_of(*whens, {})) == []
