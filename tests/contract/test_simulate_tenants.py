"""The simulator asks a policy what the service asks it, of tenants, headers, splits, the time of day."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from router.cli.server import simulate
from router.policy import Policy
from router.policy.facts import MeasuredVariant
from router.service.api_keys import hash_key
from router.simulate.engine import Settings, Simulation, SimulationError
from router.simulate.result import SimulationResult
from router.simulate.timing import Costs
from router.simulate.workload import Request
from tests.support.simulated import profile

VARIANTS = {
    "m": {
        "best": MeasuredVariant("best", profile(9.0, 1.0)),
        "quick": MeasuredVariant("quick", profile(2.0, 0.2), 0.01),
    }
}
BOTH: dict[str, Any] = {
    "artifacts": "a",
    "online": {"variants": ["best", "quick"], "max_batch": 32},
    "batch": {"variant": "best", "max_batch": 32},
}
#: Thursday, 15 January 2026, 00:00 UTC.
MIDNIGHT_S = 1_768_435_200.0


def policy(*routes: dict[str, Any], **more: Any) -> Policy:
    rest = {"name": "rest", "to": "online", "variants": ["quick"]}
    tenants = {"tenants": {"acme": {}, "zoo": {}}, **more}
    return Policy.model_validate({"models": {"m": BOTH}, "routes": [*routes, rest], **tenants})


def each(count: int, every_ms: float = 100.0, budget_ms: float = 400.0, **about: Any) -> list[Request]:
    rows = about.pop("rows", 1)
    return [Request(1.0 + every_ms * n, "m", budget_ms, rows, **about) for n in range(count)]


def run(chosen: Policy, *requests: list[Request], seed: int = 7, **costs: Any) -> SimulationResult:
    together = sorted((request for some in requests for request in some), key=lambda r: r.at_ms)
    result = Simulation(chosen, VARIANTS, Settings(seed, Costs(**costs))).run(together)
    assert result.violations == []
    assert result.requests == len(together)
    return result


def routes(result: SimulationResult) -> dict[str, int]:
    return {name: sum(tally.outcomes.values()) for name, tally in result.routes.items()}


ASKED = [
    ({"tenant": "acme"}, {"tenant": "acme"}, {"tenant": "zoo"}),
    ({"header": {"X-Tier": "gold"}}, {"headers": {b"x-tier": b"gold"}}, {"headers": {b"x-tier": b"tin"}}),
    ({"parameter": {"explain": True}}, {"parameters": {"explain": True}}, {"parameters": {"explain": 1}}),
    ({"rows": "> 2"}, {"rows": 3}, {"rows": 2}),
    ({"time": "22:00-06:00"}, {"epoch_s": MIDNIGHT_S}, {"epoch_s": MIDNIGHT_S + 12 * 3_600.0}),
    (
        {"time": "22:00-06:00 Europe/Vienna"},
        {"epoch_s": MIDNIGHT_S + 21.5 * 3_600.0},
        {"epoch_s": MIDNIGHT_S + 5.5 * 3_600.0},
    ),
]


@pytest.mark.parametrize(("when", "fits", "differs"), ASKED, ids=[" ".join(when) for when, _, _ in ASKED])
def test_a_route_takes_the_requests_that_its_conditions_are_about(
    when: dict[str, Any], fits: dict[str, Any], differs: dict[str, Any]
) -> None:
    asked = {"name": "asked", "when": when, "to": "online", "variants": ["best"]}
    found = run(policy(asked), each(7, **fits), each(5, **differs))
    assert routes(found) == {"asked": 7, "rest": 5}
    assert found.routes["asked"].variants == {"best": 7}


def test_a_variant_that_the_caller_pins_is_the_one_that_runs() -> None:
    found = run(policy(), each(5, variant="quick"), each(5, variant="best", tenant="acme"))
    assert found.routes["rest"].variants == {"quick": 5, "best": 5}


def test_a_split_is_drawn_by_its_weights_and_by_the_seed() -> None:
    split = policy({"name": "split", "to": "online", "split": {"best": 80, "quick": 20}})
    first, again, other = (run(split, each(1_000, 40.0), seed=seed) for seed in (7, 7, 8))
    assert first.routes["split"].variants["quick"] == pytest.approx(200, abs=40)
    assert orjson.dumps(first.to_json()) == orjson.dumps(again.to_json()) != orjson.dumps(other.to_json())


@pytest.mark.parametrize(
    ("limits", "let_in"),
    [
        ({"rate": "5/s", "burst": 1}, 50),
        ({"row_rate": "20/s"}, 200 // 4 + 5),
        ({"in_flight": 1}, 100),
    ],
)
def test_a_tenant_over_its_limits_is_refused_and_no_other(limits: dict[str, Any], let_in: int) -> None:
    chosen = policy(tenants={"acme": limits, "zoo": {}})
    found = run(chosen, each(100, tenant="acme", rows=4), each(100, tenant="zoo", rows=4))
    assert sum(found.tenants["zoo"].outcomes.values()) == found.tenants["zoo"].outcomes["met"] == 100
    assert found.tenants["acme"].outcomes["met"] == pytest.approx(let_in, abs=2)
    assert found.refused_for == (
        {"quota": 100 - found.tenants["acme"].outcomes["met"]} if let_in < 100 else {}
    )
    assert found.routes.get("(none)", found.routes["rest"]).outcomes["refused"] == found.refused_for["quota"]


def test_a_queued_request_is_in_flight_as_long_as_its_caller_holds() -> None:
    queued = {"name": "queued", "when": {"budget": "> 1s"}, "to": "batch"}
    bulk = {"artifacts": "a", "batch": {"variant": "best", "max_batch": 1}}
    slow = {"m": {"best": MeasuredVariant("best", profile(4_000.0, 1.0))}}
    met = {}
    for hold in ("1s", "30s"):
        chosen = Policy.model_validate(
            {
                "models": {"m": bulk},
                "routes": [queued],
                "tenants": {"acme": {"in_flight": 1}},
                "defaults": {"hold": hold},
            }
        )
        requests = each(8, 2_000.0, budget_ms=600_000.0, tenant="acme")
        met[hold] = Simulation(chosen, slow, Settings()).run(requests).routes["queued"].outcomes["met"]
    # One every 2 s, 4 s for each: those that hold until the end keep their place for two others.
    assert met == {"1s": 8, "30s": pytest.approx(3, abs=1)}
    at_once = each(8, 2_000.0, budget_ms=600_000.0, tenant="acme", headers={b"prefer": b"respond-async"})
    assert Simulation(chosen, slow, Settings()).run(at_once).routes["queued"].outcomes["met"] == 8


def test_several_routers_share_a_tenants_limits() -> None:
    limited = policy(tenants={"acme": {"rate": "10/s", "burst": 2}})
    one, four = (run(limited, each(300, 20.0, tenant="acme"), routers=n) for n in (1, 4))
    assert four.refused_for["quota"] == pytest.approx(one.refused_for["quota"], abs=6)


def test_a_tenants_weight_is_its_share_of_the_batch_workers() -> None:
    """Both have more in the queue than can be done in time; three of four rows are the heavier one's."""
    bulk = {"name": "bulk", "to": "batch", "on_miss": ["degrade"]}
    weighty = policy(bulk, tenants={"acme": {"weight": 3}, "zoo": {}})
    many = [each(3_000, 1.0, budget_ms=1_500.0, tenant=name) for name in ("acme", "zoo")]
    even = run(policy(bulk), *many, door_ms=0.01).tenants
    found = run(weighty, *many, door_ms=0.01).tenants
    assert even["acme"].outcomes["met"] == pytest.approx(even["zoo"].outcomes["met"], rel=0.1)
    assert found["acme"].outcomes["met"] > 2.0 * found["zoo"].outcomes["met"] > 0


def test_bounds_of_the_queue_hold_by_tenant_and_in_all() -> None:
    bulk = {"name": "bulk", "to": "batch"}
    chosen = policy(bulk, tenants={"acme": {"queue": {"jobs": 5}}, "zoo": {}}, limits={"queue": {"jobs": 20}})
    burst = [each(40, 0.1, budget_ms=60_000.0, tenant=name) for name in ("acme", "zoo")]
    found = run(chosen, *burst, door_ms=0.001)
    assert found.refused_for.keys() == {"full"}
    assert 5 <= found.tenants["acme"].outcomes["met"] < 12
    assert found.tenants["zoo"].outcomes["met"] > found.tenants["acme"].outcomes["met"]
    assert found.not_played == []
    said = policy(limits={"queue": {"bytes": "1MiB"}})
    assert "bounds of a queue in bytes are not reached" in run(said, each(1)).not_played[0]


def test_what_a_tenant_may_not_use_and_what_has_too_many_rows_is_refused_before_any_route() -> None:
    models = {"m": BOTH, "n": {"artifacts": "a", "online": {"variants": ["best"]}}}
    chosen = Policy.model_validate(
        {"models": models, "tenants": {"acme": {"models": ["n"]}, "zoo": {}}, "limits": {"rows": 8}}
    )
    requests = [*each(3, tenant="acme"), *each(2, tenant="zoo", rows=9), *each(4, tenant="zoo", rows=8)]
    variants = {**VARIANTS, "n": VARIANTS["m"]}
    found = Simulation(chosen, variants).run(sorted(requests, key=lambda r: r.at_ms))
    assert found.refused_for == {"forbidden": 3, "size": 2}
    assert found.routes["(none)"].refused_for == found.refused_for


def test_shadows_take_their_share_of_the_replicas_time() -> None:
    shadow = {"name": "r", "to": "online", "variants": ["quick"], "shadow": {"variant": "best", "share": 0.5}}
    without = run(policy({**shadow, "shadow": None}), each(400))
    found = run(policy(shadow), each(400))
    assert found.shadows["ran"] == pytest.approx(200, abs=40)
    assert found.routes["r"].outcomes["met"] == 400
    more_s = found.busy_s["m online"] - without.busy_s["m online"]
    assert more_s == pytest.approx(0.010 * found.shadows["ran"], rel=0.15)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (
            {"tenant": "acne"},
            "a request of tenant 'acne', which the policy does not have; did you mean 'acme'?",
        ),
        ({"variant": "bset"}, "a request for variant 'bset' of model 'm'; did you mean 'best'?"),
        (
            {},
            "route 'night' depends on the time of day, which the arrivals do not have; add --start-at 22:00",
        ),
    ],
)
def test_what_cannot_be_played_is_refused_by_name(request_: dict[str, Any], said: str) -> None:
    night = {"name": "night", "when": {"time": "22:00-06:00"}, "to": "online"}
    with pytest.raises(SimulationError) as caught:
        run(policy(night), each(1, **request_))
    assert said in str(caught.value)


def test_requests_without_a_tenant_are_refused_by_name_where_a_key_is_needed() -> None:
    keyed = policy(tenants={"acme": {"keys": [hash_key("hr_acme")]}})
    with pytest.raises(SimulationError, match=r"add a column 'tenant' .* with one of acme"):
        run(keyed, each(1))
    assert run(keyed, each(2, tenant="acme")).share("met") == 1.0


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(simulate, "read_variants", lambda chosen, source: VARIANTS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(
        "models:\n  m: {artifacts: a, online: {variants: [best, quick]}}\n"
        "routes:\n"
        "  - {name: gold, when: {tenant: acme, header: {X-Tier: gold}}, to: online}\n"
        "  - {name: night, when: {time: '22:00-06:00'}, to: online, variants: [quick]}\n"
        "  - {name: day, to: online}\n"
        "tenants: {acme: {rate: 1/s}, zoo: {}}\n"
    )
    return tmp_path


def say(*args: str) -> tuple[int, str]:
    done = CliRunner().invoke(simulate.simulate, ["p.yaml", *args])
    return done.exit_code, done.output


MIX = "m:400ms:1:1:tenant=acme:header.X-Tier=gold,m:400ms:tenant=zoo"


def test_the_command_plays_a_mix_of_tenants_from_a_time_of_day_on(files: Path) -> None:
    load = ("--rate", "20", "--seconds", "20", "--mix", MIX)
    code, text = say(*load, "--start-at", "21:59:50", "--json", "-")
    assert code == 0, text
    told = orjson.loads(text)["p.yaml"]
    assert told["routes"].keys() == {"gold", "day", "night", "(none)"}
    assert told["tenants"].keys() == {"acme", "zoo"}
    assert told["routes"]["gold"]["requests"] == pytest.approx(20, abs=4)
    assert (
        told["refused_for"]
        == told["tenants"]["acme"]["refused_for"]
        == {"quota": told["tenants"]["acme"]["refused"]}
    )
    code, table = say(*load, "--start-at", "2026-07-15T12:00")
    lines = table.splitlines()
    assert code == 0 and "night" not in table
    assert [line.split()[1] for line in lines if line.startswith(("p.yaml ", "policy"))] == [
        "route", "(none)", "day", "gold", "tenant", "acme", "zoo",
    ]  # fmt: skip
    assert any("over the tenant's quota" in line for line in lines)


def test_the_command_plays_the_dates_of_a_trace(files: Path) -> None:
    times = [f"2026-01-15T{hour:02}:30:00Z" for hour in range(24)]
    (files / "t.csv").write_text("ts,tenant\n" + "".join(f"{time},zoo\n" for time in times))
    code, text = say("--trace", "t.csv", "--scale", "3600", "--json", "-")
    assert code == 0, text
    told = orjson.loads(text)["p.yaml"]["routes"]
    assert {name: route["requests"] for name, route in told.items()} == {"day": 16, "night": 8}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--mix", MIX), "route 'night' depends on the time of day"),
        (("--mix", "m:1s:tenant=zoot", "--start-at", "12:00"), "did you mean 'zoo'?"),
        (("--start-at", "noon"), "--start-at 'noon' is not a time; write 22:00 or 2026-07-15T22:00"),
        (("--mix", "m:1s:tennant=zoo"), "did you mean 'tenant'?"),
        (("--trace", "bad.csv"), "bad.csv:2: 'tennant' says nothing about a request; did you mean 'tenant'?"),
    ],
)
def test_the_command_says_what_is_missing(files: Path, args: tuple[str, ...], said: str) -> None:
    (files / "bad.csv").write_text("time,tennant\n0,acme\n")
    code, text = say(*args)
    assert code == 1
    assert said in text
    code, text = say("--trace", "bad.csv", "--ignore-columns", "tennant", "--start-at", "12:00")
    assert code == 0, text
