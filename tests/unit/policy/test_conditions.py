"""The conditions of a route as tables: what holds, what is refused when read, and in which words."""

from __future__ import annotations

from datetime import UTC, datetime
from textwrap import dedent, indent
from typing import Any

import pytest

from router.policy import PolicyError, When, parse
from router.policy.terms.route_facts import RouteFacts

ASK: dict[str, Any] = {"model": "m", "rows": 4, "budget_ms": 1_000.0}


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


HEADER = {b"x-tier": b"gold"}
HOLDS: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    ({}, {}, True),
    ({"budget": "<= 1s"}, {}, True),
    ({"budget": "< 1s"}, {}, False),
    ({"budget": "> 250ms, <= 30s"}, {}, True),
    ({"model": "m"}, {}, True),
    ({"model": ["n", "o"]}, {}, False),
    ({"tenant": "acme"}, {"tenant": "acme"}, True),
    ({"tenant": ["zoo", "acme"]}, {"tenant": "acme"}, True),
    ({"tenant": "acme"}, {}, False),
    ({"rows": "<= 4"}, {}, True),
    ({"rows": "> 4"}, {}, False),
    ({"rows": "> 1, < 8"}, {}, True),
    ({"header": {"X-Tier": "gold"}}, {"headers": HEADER}, True),
    ({"header": {"x-tier": ["silver", "gold"]}}, {"headers": HEADER}, True),
    ({"header": {"X-Tier": "Gold"}}, {"headers": HEADER}, False),
    ({"header": {"X-Tier": "*"}}, {"headers": HEADER}, True),
    ({"header": {"X-Tier": "*"}}, {}, False),
    ({"header": {"X-Tier": "gold", "X-Other": "*"}}, {"headers": HEADER}, False),
    ({"header": {"X-Name": "\u00e9"}}, {"headers": {b"x-name": b"\xe9"}}, True),
    ({"parameter": {"explain": True}}, {"parameters": {"explain": True}}, True),
    ({"parameter": {"explain": True}}, {"parameters": {"explain": 1}}, False),
    ({"parameter": {"explain": 1}}, {"parameters": {"explain": True}}, False),
    ({"parameter": {"explain": [True, "tree"]}}, {"parameters": {"explain": "tree"}}, True),
    ({"parameter": {"k": 3}}, {"parameters": {"k": 3.0}}, True),
    ({"parameter": {"k": 3}}, {"parameters": {"k": "3"}}, False),
    ({"parameter": {"k": "*"}}, {"parameters": {"k": False}}, True),
    ({"parameter": {"k": "*"}}, {}, False),
    ({"time": "22:00-06:00"}, {"epoch_s": at("2026-01-15T23:30")}, True),
    ({"time": "22:00-06:00"}, {"epoch_s": at("2026-01-15T05:59")}, True),
    ({"time": "22:00-06:00"}, {"epoch_s": at("2026-01-15T06:00")}, False),
    ({"time": "08:00-24:00"}, {"epoch_s": at("2026-01-15T23:59")}, True),
    ({"time": "08:00-18:00 Europe/Vienna"}, {"epoch_s": at("2026-01-15T07:00")}, True),
    ({"time": "08:00-18:00 Europe/Vienna"}, {"epoch_s": at("2026-07-15T06:00")}, True),
    ({"time": "08:00-18:00 Europe/Vienna"}, {"epoch_s": at("2026-01-15T06:59")}, False),
    ({"budget": "<= 2s", "rows": "> 8"}, {}, False),
]


@pytest.mark.parametrize(("when", "ask", "holds"), HOLDS)
def test_a_route_takes_a_request_if_all_its_conditions_hold(
    when: dict[str, Any], ask: dict[str, Any], holds: bool
) -> None:
    condition, request = When.model_validate(when), RouteFacts(**{**ASK, **ask})
    assert condition.holds(request) is holds
    # What is said to be against it is empty exactly where nothing is.
    assert (list(condition.mismatches(request)) == []) is holds


@pytest.mark.parametrize(
    ("when", "ask", "said"),
    [
        ({"budget": "<= 250ms"}, {}, ["budget is 1s, not <= 250ms"]),
        ({"model": ["n", "o"]}, {}, ["model is 'm', not 'n' or 'o'"]),
        ({"tenant": "acme"}, {}, ["tenant is none, not 'acme'"]),
        ({"tenant": "acme"}, {"tenant": "zoo"}, ["tenant is 'zoo', not 'acme'"]),
        ({"rows": "> 8, <= 64"}, {}, ["rows are 4, not > 8, <= 64"]),
        ({"header": {"X-Tier": "*"}}, {}, ["header X-Tier is absent"]),
        ({"header": {"X-Tier": "silver"}}, {"headers": HEADER}, ["header X-Tier is 'gold', not 'silver'"]),
        ({"parameter": {"explain": True}}, {}, ["parameter explain is absent, not true"]),
        ({"parameter": {"k": 1}}, {"parameters": {"k": True}}, ["parameter k is true, not 1"]),
        (
            {"time": "08:00-18:00 Europe/Vienna"},
            {"epoch_s": at("2026-07-15T17:30")},
            ["time of day is 19:30 Europe/Vienna, not 08:00-18:00 Europe/Vienna"],
        ),
        ({"budget": "> 2s", "rows": "> 8"}, {}, ["budget is 1s, not > 2s", "rows are 4, not > 8"]),
    ],
)
def test_what_is_against_a_route_is_said_for_each_condition(
    when: dict[str, Any], ask: dict[str, Any], said: list[str]
) -> None:
    assert list(When.model_validate(when).mismatches(RouteFacts(**{**ASK, **ask}))) == said


POLICY = """\
models:
  digits: {artifacts: a, online: {variants: [float32, int8]}}
  words: {artifacts: a, online: {variants: [onnx]}}
tenants:
  acme: {weight: 2}
routes:
  - name: r
    to: online
"""


def problem(text: str) -> str:
    with pytest.raises(PolicyError) as caught:
        parse(text, "p.yaml")
    (line,) = caught.value.problems
    return line


WRONG = [
    ("when: {rows: 8}", "9: routes.0.when.rows: 8 is not a bound on the rows; write '<= 8' or '> 8, <= 64'"),
    ("when: {rows: '<= 8s'}", "9: routes.0.when.rows: '8s' is not a number of rows"),
    ("when: {rows: 'about 8'}", "9: routes.0.when.rows: 'about 8' is not a bound; write <, <=, > or >= and"),
    ("when: {row: '< 8'}", "9: routes.0.when.row: unknown key; did you mean 'rows'?"),
    ("when: {tenants: acme}", "9: routes.0.when.tenants: unknown key; did you mean 'tenant'?"),
    ("when: {headers: {a: b}}", "9: routes.0.when.headers: unknown key; did you mean 'header'?"),
    ("when: {time: noon}", "9: routes.0.when.time: 'noon' is not a time of day; write '22:00-06:00'"),
    ("when: {time: '25:00-26:00'}", "9: routes.0.when.time: '25:00-26:00' is not a time of day; hours go"),
    ("when: {time: '08:00-08:00'}", "9: routes.0.when.time: '08:00-08:00' is empty; leave the condition out"),
    ("when: {time: '08:00-18:00 Mars/Base'}", "9: routes.0.when.time: 'Mars/Base' is not a time zone"),
    ("when: {header: {'a b': x}}", "9: routes.0.when.header: 'a b' is not a header's name"),
    (
        "when: {header: {a: 3}}",
        "9: routes.0.when.header.a: 3 is not a header's value; write a text in quotes",
    ),
    ("when: {parameter: {k: {a: 1}}}", "9: routes.0.when.parameter.k.0: {'a': 1} cannot be compared"),
    (
        "when: {tenant: acne}",
        "9: routes.0.when.tenant: route 'r' names tenant 'acne', which is not in 'tenants'; "
        "did you mean 'acme'?",
    ),
    (
        "when: {model: digit}",
        "9: routes.0.when.model: route 'r' names model 'digit', which is not in 'models'; "
        "did you mean 'digits'?",
    ),
    (
        "variants: [float32, int4]",
        "9: routes.0.variants: route 'r' names variant 'int4', which none of its models serves; "
        "did you mean 'int8'?",
    ),
    (
        "when: {model: words}\n    variants: int8",
        "10: routes.0.variants: route 'r' names variant 'int8', which none of its models serves; "
        "known here: onnx",
    ),
    (
        "shadow: {variant: int9}",
        "9: routes.0.shadow.variant: route 'r' names variant 'int9', which none of its models serves; did",
    ),
    ("split: {float23: 1}", "9: routes.0.split.float23: route 'r' names variant 'float23', which none"),
    ("split: {int8: 0}", "7: routes.0: a split needs a weight above 0"),
    ("split: {int8: -1}", "9: routes.0.split.int8: Input should be greater than or equal to 0, got -1"),
    ("variants: int8\n    split: {float32: 1}", "7: routes.0: split names 'float32', which is not in the"),
    ("shadow: {variant: int8, share: lots}", "9: routes.0.shadow.share: 'lots' is not a share; write 20%"),
    (
        "shadow: {variant: int8, share: 2}",
        "9: routes.0.shadow.share: Input should be less than or equal to 1",
    ),
    ("margin: some", "9: routes.0.margin: 'some' is not a share; write 20% or 0.2"),
]


@pytest.mark.parametrize(("more", "said"), WRONG)
def test_a_wrong_condition_is_told_by_its_line_key_and_mend(more: str, said: str) -> None:
    assert problem(POLICY + f"    {more}\n").startswith(f"p.yaml:{said}")


def test_a_shadow_has_no_place_on_a_route_to_the_queue() -> None:
    text = POLICY.replace("to: online", "to: batch") + "    shadow: {variant: int8}\n"
    assert problem(text).startswith("p.yaml:7: routes.0: a shadow runs beside online requests")


A, B = (f'"sha256:{letter * 64}"' for letter in "ab")


@pytest.mark.parametrize(
    ("tenants", "said"),
    [
        ("acme: {keys: [hr_abc]}", "p.yaml:3: tenants.acme.keys.0: String should match pattern"),
        ("acme: {rate: 5}", "p.yaml:3: tenants.acme.rate: 5 is not a rate; write 100/s"),
        ("acme: {wieght: 2}", "p.yaml:3: tenants.acme.wieght: unknown key; did you mean 'weight'?"),
        ("acme: {weight: 0}", "p.yaml:3: tenants.acme.weight: Input should be greater than 0"),
        ("acme: {models: n}", "p.yaml:3: tenants.acme.models: tenant 'acme' may use model 'n', which is not"),
        ("acme: {queue: {job: 1}}", "p.yaml:3: tenants.acme.queue.job: unknown key; did you mean 'jobs'?"),
        (
            f"acme: {{keys: [{A}]}}\nzoo: {{keys: [{B}, {A}]}}",
            "p.yaml:4: tenants.zoo.keys: tenants 'acme' and",
        ),
        ("a b: {}", "p.yaml:3: tenants.a b: String should match pattern"),
    ],
)
def test_a_wrong_tenant_is_told_by_its_line_key_and_mend(tenants: str, said: str) -> None:
    model = "models: {m: {artifacts: a, online: {variants: [v]}}}\n"
    assert problem(model + "tenants:\n" + indent(dedent(tenants), "  ") + "\n").startswith(said)


def test_all_wrong_names_are_told_at_once() -> None:
    with pytest.raises(PolicyError) as caught:
        parse(POLICY + "    when: {model: word, tenant: zoo}\n    variants: int4\n", "p.yaml")
    assert [line.split(": ")[1] for line in caught.value.problems] == [
        "routes.0.when.model",
        "routes.0.when.tenant",
    ]


@pytest.mark.parametrize(
    ("draw", "variant"), [(0.0, "a"), (0.59, "a"), (0.61, "b"), (0.89, "b"), (0.91, "d"), (1.0 - 1e-16, "d")]
)
def test_a_split_draws_by_weight_and_never_what_weighs_nothing(draw: float, variant: str) -> None:
    model = {"artifacts": "a", "online": {"variants": ["a", "b", "c", "d"]}}
    route = {"name": "r", "to": "online", "split": {"a": 6, "b": 3, "c": 0, "d": 1}}
    policy = parse(f"{{models: {{m: {model}}}, routes: [{route}]}}")
    assert policy.routes[0].drawn(draw) == variant
    assert policy.asks_for == {"draw"}


def test_only_what_the_routes_ask_about_has_to_be_filled_in() -> None:
    assert parse(POLICY).asks_for == frozenset()
    more = "    when: {header: {a: b}, parameter: {k: 1}, time: '08:00-09:00'}\n"
    assert parse(POLICY + more).asks_for == {"headers", "parameters", "epoch_s"}
