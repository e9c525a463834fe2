"""What is found in a policy before it runs, and where a request would go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from optimizers.profile import LatencyProfile, ProfilePoint
from router.cli.server import policy as policy_command
from router.policy import Policy
from router.policy.facts import MeasuredVariant
from router.scheduling.policy_check import Finding, check
from router.scheduling.tuning import LEAST_QUEUE_MS

#: 10 ms and 2 ms for one row, 20 ms and 4 ms for 32.
VARIANTS = {
    "m": {
        "best": MeasuredVariant("best", LatencyProfile((ProfilePoint(1, 9, 10), ProfilePoint(32, 18, 20)))),
        "quick": MeasuredVariant(
            "quick", LatencyProfile((ProfilePoint(1, 1.8, 2), ProfilePoint(32, 3.6, 4))), 0.05
        ),
    }
}
ONLINE = {"variants": ["best", "quick"]}


def findings(*routes: dict[str, Any], **sides: Any) -> list[Finding]:
    model = {"artifacts": "a", **(sides or {"online": ONLINE, "batch": {"variant": "quick"}})}
    named = [{"name": "abcdefg"[n], **route} for n, route in enumerate(routes)]
    return check(Policy.model_validate({"models": {"m": model}, "routes": named}), VARIANTS)


def texts(*routes: dict[str, Any], level: str = "", **sides: Any) -> list[str]:
    return [f"{f.where}: {f.text}" for f in findings(*routes, **sides) if not level or f.level == level]


def test_a_policy_without_faults_gives_only_what_cannot_be_met() -> None:
    routes = {"when": {"budget": "<= 250ms"}, "to": "online"}, {"to": "auto"}
    assert findings(*routes) == [Finding("note", "a", "'m': budgets below 3ms cannot be met")]


def test_a_model_in_the_router_needs_no_time_for_a_call() -> None:
    route = {"when": {"budget": "<= 2ms"}, "to": "online"}
    late = "a: no variant of 'm' can answer in time: the fastest takes 3ms for one row on an idle replica"
    assert texts(route, level="error", online=ONLINE) == [late]
    assert texts(route, level="error", online=ONLINE | {"in_router": True}) == []


def test_a_route_that_others_before_it_leave_nothing_can_never_match() -> None:
    low, high = {"when": {"budget": "<= 1s"}, "to": "online"}, {"when": {"budget": "> 1s"}, "to": "batch"}
    assert texts(low, high, {"to": "auto"}, level="warning") == [
        "c: can never match: 'a', 'b' before it take all that it would"
    ]
    assert texts(low, {"when": {"budget": ">= 1s"}, "to": "batch"}, {"to": "auto"}, level="warning")
    # The budget of exactly one second is what the third one is for.
    assert not texts({"when": {"budget": "< 1s"}, "to": "online"}, high, {"to": "auto"}, level="warning")


def test_conditions_that_exclude_each_other_are_named() -> None:
    assert texts({"when": {"budget": "> 2s, < 1s"}, "to": "online"}, level="warning") == [
        "a: can never match: its conditions exclude each other"
    ]


def test_a_split_of_queued_work_may_name_what_the_worker_does_not_hold_yet() -> None:
    assert findings({"to": "batch", "split": {"best": 1}}) == []
    floor = {"to": "batch", "split": {"quick": 1}, "quality": {"max_drop": 0.01}}
    assert "no variant of 'm' is within quality.max_drop 0.01" in texts(floor, level="error")[0]


def test_gaps_are_named_with_where_their_requests_go() -> None:
    found = texts({"when": {"budget": "<= 1s"}, "to": "online"}, {"when": {"budget": ">= 1h"}, "to": "batch"})
    assert found[-1] == (
        "default: 'm': no route takes budgets between 1s and 1h; they go where it is cheapest (auto)"
    )
    assert "no route takes any budget; they go" in texts()[-1]


@pytest.mark.parametrize(
    ("route", "sides", "said"),
    [
        ({"to": "online"}, {"batch": {"variant": "best"}}, "the model has no 'online' section"),
        ({"to": "batch"}, {"online": ONLINE}, "the model has no 'batch' section"),
        (
            {"to": "batch", "quality": {"max_drop": 0.01}},
            {"batch": {"variant": "quick"}},
            "no variant of 'm' is within quality.max_drop 0.01; they drop quick 0.05",
        ),
        (
            {"to": "online", "when": {"budget": "<= 2ms"}},
            {"online": ONLINE},
            "no variant of 'm' can answer in time: the fastest takes 3ms for one row on an idle replica",
        ),
        (
            {"to": "online", "when": {"budget": "<= 8ms"}, "quality": {"max_drop": 0.01}},
            {"online": ONLINE},
            "the fastest takes 11ms",
        ),
    ],
)
def test_what_could_only_be_refused_is_an_error(
    route: dict[str, Any], sides: dict[str, Any], said: str
) -> None:
    (error,) = texts(route, level="error", **sides)
    assert said in error


POLICY = """
models:
  m:
    artifacts: a
    online: {variants: [best, quick]}
    batch: {variant: quick}
routes:
  - {name: interactive, when: {budget: "<= 250ms"}, to: online}
  - {name: bulk, to: batch}
  - {name: never, to: auto}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(policy_command, "read_variants", lambda chosen, source: VARIANTS)
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return str(path)


def say(*args: str) -> tuple[int, str]:
    done = CliRunner().invoke(policy_command.policy, args)
    return done.exit_code, done.output


def test_check_prints_a_line_for_each_finding_and_exits_by_their_weight(file: str, tmp_path: Path) -> None:
    code, text = say("check", file)
    assert (code, "warning: route 'never': can never match: 'bulk', 'interactive'" in text) == (0, True)
    assert say("check", file, "--strict")[0] == 1
    assert [f["level"] for f in orjson.loads(say("check", file, "--json")[1])] == ["note", "warning"]
    (tmp_path / "bad.yaml").write_text(POLICY.replace("when:", "wen:"))
    code, text = say("check", str(tmp_path / "bad.yaml"))
    assert (code, "bad.yaml:8: routes.0.wen: unknown key; did you mean 'when'?" in text) == (2, True)


@pytest.mark.parametrize(
    ("args", "code", "goes", "variant"),
    [
        (("--budget", "80ms"), 0, "online", "best"),
        (("--budget", "8ms"), 0, "online", "quick"),
        (("--budget", "80ms", "--variant", "quick"), 0, "online", "quick"),
        (("--budget", "1h"), 0, "batch", "quick"),
        (("--budget", "80ms", "--online-rows", "100000"), 1, "refused", None),
        (("--budget", "1s", "--queued-rows", "1000000"), 1, "refused", None),
    ],
)
def test_explain_says_where_a_request_goes(
    file: str, args: tuple[str, ...], code: int, goes: str, variant: str | None
) -> None:
    done, text = say("explain", file, *args, "--json")
    told = orjson.loads(text)
    assert (done, told["goes"], told.get("variant")) == (code, goes, variant)
    assert [(o["path"], o["variant"]) for o in told["options"]] == [
        ("online", "best"),
        ("online", "quick"),
        ("batch", "quick"),
    ]
    assert told["reason"] in say("explain", file, *args)[1]


def test_explain_promises_no_answer_through_an_empty_queue_sooner_than_one_was_measured(file: str) -> None:
    _, text = say("explain", file, "--budget", "1h", "--json")
    told = orjson.loads(text)
    assert told["goes"] == "batch"
    assert told["predicted_ms"] == told["options"][-1]["predicted_ms"] >= LEAST_QUEUE_MS


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--model", "x"), "--model: the policy has m"),
        (("--budget", "soon"), "--budget: 'soon' is not a duration"),
        (("--variant", "x"), "--variant: model 'm' has best, quick"),
        (("--tenant", "x"), "--tenant: the policy has none"),
        (("--header", "X-Tier"), "--header: 'X-Tier' is not a header; write 'X-Tier: gold'"),
        (("--header", ": gold"), "--header: ': gold' is not a header"),
        (("--header", "X-Tier: \u20ac"), "has a character that no header can carry"),
        (("--parameter", "explain"), "--parameter: 'explain' is not a parameter; write explain=true"),
        (("--parameter", "k=[1"), "--parameter: 'k=[1' is not a parameter"),
        (("--parameter", "k=2026-01-15"), "--parameter: 'k=2026-01-15' is not a parameter"),
        (("--at", "noon"), "--at: 'noon' is not a time; write 2026-01-15T23:00 or 23:00"),
        (("--at", "2026-13-15"), "--at: '2026-13-15' is not a time"),
    ],
)
def test_what_cannot_be_explained_is_said_in_a_sentence(file: str, args: tuple[str, ...], said: str) -> None:
    code, text = say("explain", file, *args)
    assert (code, said in text) == (2, True)


ASKING = """
models:
  m:
    artifacts: a
    online: {variants: [best, quick]}
    batch: {variant: quick}
  o: {artifacts: a, online: {variants: [best]}}
tenants: {acme: {models: m}, zoo: {models: o}}
routes:
  - {name: short, when: {budget: "<= 250ms"}, to: online, variants: best}
  - {name: night, when: {time: "22:00-06:00 Europe/Vienna"}, to: batch}
  - {name: gold, when: {header: {X-Tier: gold}, tenant: acme}, to: online, split: {best: 3, quick: 1}}
  - {name: explained, when: {parameter: {explain: true}}, to: online, variants: quick,
     shadow: {variant: best, share: 5%}}
  - {name: large, when: {rows: "> 8"}, to: batch}
  - {name: rest, to: auto}
"""


@pytest.fixture
def asking(file: str) -> str:
    Path(file).write_text(ASKING)
    return file


@pytest.mark.parametrize(
    ("args", "route"),
    [
        (("--budget", "80ms"), "short"),
        (("--at", "2026-01-15T21:00"), "night"),
        (("--at", "2026-01-15T22:30+01:00"), "night"),
        (("--at", "2026-01-15T20:59"), "rest"),
        (("--at", "12:00", "--tenant", "acme", "--header", "x-tier:  gold"), "gold"),
        (("--at", "12:00", "--header", "X-Tier: gold"), "rest"),
        (("--at", "12:00", "--parameter", "explain=true"), "explained"),
        (("--at", "12:00", "--parameter", "explain=yes please"), "rest"),
        (("--at", "12:00", "--parameter", "explain='true'"), "rest"),
        (("--at", "12:00", "--rows", "9"), "large"),
    ],
)
def test_explain_asks_as_any_caller_may(asking: str, args: tuple[str, ...], route: str) -> None:
    code, text = say("explain", asking, "--model", "m", *args, "--json")
    assert (code, orjson.loads(text)["route"]) == (0, route)


def test_explain_says_why_no_earlier_route_took_it(asking: str) -> None:
    args = ("--model", "m", "--budget", "2s", "--at", "2026-07-15T10:00", "--parameter", "explain=true")
    told = orjson.loads(say("explain", asking, *args, "--json")[1])
    assert told["passed"] == [
        {"route": "short", "why": ["budget is 2s, not <= 250ms"]},
        {
            "route": "night",
            "why": ["time of day is 12:00 Europe/Vienna, not 22:00-06:00 Europe/Vienna"],
        },
        {"route": "gold", "why": ["tenant is none, not 'acme'", "header X-Tier is absent, not 'gold'"]},
    ]
    lines = say("explain", asking, *args)[1].splitlines()
    assert lines[0].startswith("route 'explained': online, variant 'quick'")
    assert lines[0].endswith("the most accurate that the route allows")
    assert lines[1:5] == [
        "  not 'short': budget is 2s, not <= 250ms",
        "  not 'night': time of day is 12:00 Europe/Vienna, not 22:00-06:00 Europe/Vienna",
        "  not 'gold': tenant is none, not 'acme'; header X-Tier is absent, not 'gold'",
        "  shadow: best 5%",
    ]


def test_explain_shows_the_shares_of_a_split(asking: str) -> None:
    args = ("--model", "m", "--at", "12:00", "--tenant", "acme", "--header", "X-Tier: gold")
    assert orjson.loads(say("explain", asking, *args, "--json")[1])["split"] == {"best": 0.75, "quick": 0.25}
    assert "  split: best 75%, quick 25%" in say("explain", asking, *args)[1].splitlines()


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("--tenant", "zoo"), "tenant 'zoo' may not use model 'm'"),
        (("--rows", "5000"), "5000 rows in one request; the policy's limits.rows is 4096"),
    ],
)
def test_explain_says_what_is_refused_before_any_route(
    asking: str, args: tuple[str, ...], reason: str
) -> None:
    code, text = say("explain", asking, "--model", "m", "--at", "12:00", *args)
    assert (code, f"refused: {reason}" in text) == (1, True)
