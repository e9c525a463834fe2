"""What is found in a policy before it runs, and where a request would go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from optimizers.profile import LatencyProfile, ProfilePoint
from router.estimate import Variant
from router.policy import Policy
from router.policy import command as policy_command
from router.policy.check import Finding, check

#: 10 ms and 2 ms for one row, 20 ms and 4 ms for 32.
VARIANTS = {
    "m": {
        "best": Variant("best", LatencyProfile((ProfilePoint(1, 9, 10), ProfilePoint(32, 18, 20)))),
        "quick": Variant("quick", LatencyProfile((ProfilePoint(1, 1.8, 2), ProfilePoint(32, 3.6, 4))), 0.05),
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


def test_gaps_are_named_with_where_their_requests_go() -> None:
    found = texts({"when": {"budget": "<= 1s"}, "to": "online"}, {"when": {"budget": ">= 1h"}, "to": "batch"})
    assert found[-1] == (
        "default: 'm': no route takes budgets between 1s and 1h; they go where it is cheapest (auto)"
    )
    assert "all budgets" in texts()[-1]


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


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--model", "x"), "--model: the policy has m"),
        (("--budget", "soon"), "--budget: 'soon' is not a duration"),
        (("--variant", "x"), "--variant: model 'm' has best, quick"),
    ],
)
def test_what_cannot_be_explained_is_said_in_a_sentence(file: str, args: tuple[str, ...], said: str) -> None:
    code, text = say("explain", file, *args)
    assert (code, said in text) == (2, True)
