"""The simulator: what it says of a policy is what production's own modules do, and it says it twice alike."""

from __future__ import annotations

import random
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from optimizers.profile import LatencyProfile, ProfilePoint
from router.cli.server import simulate
from router.policy import Policy
from router.policy.facts import MeasuredVariant
from router.simulate import arrivals as trace
from router.simulate import faults, observed, plan, workload
from router.simulate.engine import Settings, Simulation, SimulationError
from router.simulate.faults import Fault
from router.simulate.result import SimulationResult
from router.simulate.timing import Costs, Timing
from router.simulate.workload import Request, Share
from tests.support.simulated import profile, random_case
from workers.batching import RunBatch

#: 10 ms for one row, 41 ms for 32: one replica answers about 780 rows a second at its best.
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


def policy(model: dict[str, Any] | None = None, **route: Any) -> Policy:
    return Policy.model_validate(
        {"models": {"m": model or BOTH}, "routes": [{"name": "r", "to": "online", **route}]}
    )


def steadily(rate_per_s: float, seconds: float, budget_ms: float = 200.0, rows: int = 1) -> list[Request]:
    count = int(rate_per_s * seconds)
    return [Request(1_000.0 * n / rate_per_s, "m", budget_ms, rows) for n in range(count)]


def run(chosen: Policy, requests: list[Request], *found: Fault, **costs: float) -> SimulationResult:
    result = Simulation(chosen, VARIANTS, Settings(costs=Costs(**costs), faults=found)).run(requests)  # type: ignore[arg-type]
    assert result.violations == []
    assert result.requests == len(requests)
    return result


def test_a_light_load_is_answered_in_time_by_the_best_variant_within_its_prediction() -> None:
    found = run(policy(), steadily(20.0, 20.0)).to_json()["routes"]["r"]
    assert found["met"] == 400
    assert found["variants"] == {"best": 400}
    # 10 ms of model, and about 2 ms of door, hop and wire.
    assert found["latency_ms_p50"] == pytest.approx(12.0, abs=1.0)
    assert found["within_predicted_bound"] >= 0.95


def test_under_pressure_the_quick_variant_takes_over_and_what_no_variant_can_do_is_refused_at_once() -> None:
    overloaded = run(policy(), steadily(1_500.0, 5.0)).routes["r"]
    assert overloaded.variants["quick"] > overloaded.variants["best"] > 0
    flooded = run(policy(), steadily(9_000.0, 3.0), door_ms=0.01).routes["r"]
    assert flooded.outcomes["refused"] > 0.2 * 27_000
    assert max(flooded.refusals_ms) < 5.0


def test_a_policy_that_asks_for_999_of_1000_in_time_has_fewer_of_the_accepted_late_at_little_cost() -> None:
    requests = [Request(1_000.0 * at_s, "m", 80.0, 1) for at_s in trace.bursty(500.0, 60.0, seed=7)]
    online: dict[str, Any] = {"variants": ["best"], "max_batch": 32}
    usual, sure = (
        run(policy({"artifacts": "a", "online": {**online, **more}}), requests, hop_ms=2.0, hop_sigma=1.0)
        for more in ({}, {"in_time": "99.9%"})
    )
    assert 1.0 - sure.met_of_accepted < 0.5 * (1.0 - usual.met_of_accepted)
    assert sure.share("met") > 0.95 * usual.share("met")


def test_the_queue_is_drained_in_batches_and_what_is_too_much_for_it_expires() -> None:
    calm = run(policy(to="batch"), steadily(300.0, 5.0, budget_ms=60_000.0))
    assert calm.share("met") == 1.0
    assert calm.to_json()["mean_batch_rows"]["m batch"] > 3
    late = run(policy(to="batch", on_miss=["degrade"]), steadily(2_000.0, 5.0, budget_ms=1_000.0)).routes["r"]
    assert late.outcomes["expired"] > 1_000
    assert late.outcomes["late"] < late.outcomes["expired"] / 10


def test_requests_larger_than_a_batch_are_split_and_answered_as_one() -> None:
    found = run(policy(), steadily(2.0, 10.0, budget_ms=2_000.0, rows=100))
    assert found.share("met") == 1.0
    # And a few rows of zeros, because between two of them nothing is heard of the variants.
    assert 4 * 20 <= found.batches["m online"] < 4 * 20 + 5


def test_the_same_seed_gives_the_same_result_to_the_byte_and_another_seed_another() -> None:
    case = random_case(3)
    texts = [orjson.dumps(case.run().to_json()) for _ in range(2)]
    other = case._replace(settings=Settings(4, case.settings.costs, case.settings.faults))
    assert texts[0] == texts[1] != orjson.dumps(other.run().to_json())


def test_a_replica_that_dies_costs_its_batch_a_second_try_and_the_policy_its_capacity() -> None:
    two = policy({**BOTH, "online": {**BOTH["online"], "replicas": 2}})
    kill = Fault("kill", "m", "online", 0, 2_000.0)
    found = run(two, steadily(300.0, 10.0), kill)
    assert found.routes["r"].outcomes["failed"] == 0
    assert found.share("met") > 0.95


def test_a_worker_that_dies_loses_its_lease_and_not_its_jobs() -> None:
    two = policy({**BOTH, "batch": {**BOTH["batch"], "workers": 2, "lease": "1s"}}, to="batch")
    found = run(two, steadily(200.0, 10.0, budget_ms=30_000.0), Fault("kill", "m", "batch", 0, 3_000.0))
    assert found.share("met") == 1.0


def test_a_short_outage_of_the_queue_is_waited_out_and_a_long_one_is_told() -> None:
    chosen = policy(to="batch")
    requests = steadily(50.0, 10.0, budget_ms=60_000.0)
    assert run(chosen, requests, Fault("outage", "m", "queue", 0, 2_000.0, 3_000.0)).share("met") == 1.0
    long = run(chosen, requests, Fault("outage", "m", "queue", 0, 2_000.0, 13_000.0)).routes["r"]
    assert long.outcomes["failed"] == pytest.approx(50 * 3, abs=2)  # a submit tries for 10 s


def test_what_may_go_either_way_runs_online_while_the_queue_is_out_of_reach() -> None:
    outage = Fault("outage", "m", "queue", 0, 2_000.0, 7_000.0)
    found = run(policy(to="auto"), steadily(50.0, 10.0, budget_ms=60_000.0), outage)
    assert found.share("met") == 1.0
    assert found.batches["m online"] >= 50 * 6, (
        "each of those that came in the outage, after its first second"
    )


def test_a_slow_replica_is_slow_for_so_long() -> None:
    slow = Fault("slow", "m", "online", 0, 0.0, 5_000.0, 8.0)
    one_variant = policy({**BOTH, "online": {"variants": ["best"]}})
    found = run(one_variant, steadily(20.0, 10.0, budget_ms=500.0), slow).routes["r"].latencies_ms
    assert max(found[-60:]) < 30.0 < min(found[5:60])


def test_a_rule_that_ignores_deadlines_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(waiting: Any, table: Any, now_ms: float, **state: float) -> RunBatch:
        return RunBatch(len(waiting), sum(item.rows for item in waiting), 0, 1.0)

    monkeypatch.setattr("router.scheduling.batch_planner.next_batch", greedy)
    monkeypatch.setattr(
        "router.scheduling.scheduler.Scheduler._drop_hopeless", lambda scheduler, now_ms, actions: None
    )
    pinned = policy({**BOTH, "online": {"variants": ["best"], "max_batch": 8}})
    kills = tuple(Fault("kill", "m", "online", 0, at_ms) for at_ms in (1_000.0, 6_000.0))
    found = Simulation(pinned, VARIANTS, Settings(faults=kills)).run(steadily(600.0, 10.0))
    texts = " ".join(found.violations)
    assert "over the limit of 8" in texts
    assert "too late" in texts


def test_the_fewest_replicas_that_hold_a_target_are_found() -> None:
    tried: list[tuple[dict[str, int], float]] = []
    one_variant = policy({"artifacts": "a", "online": {"variants": ["best"], "max_batch": 32}})
    best = plan.fit(
        one_variant,
        VARIANTS,
        steadily(2_000.0, 3.0),
        0.999,
        Settings(costs=Costs(door_ms=0.05)),
        lambda counts, met: tried.append((dict(counts), met)),
    )
    assert best.met >= 0.999
    assert best.replicas == {"online": min(c["online"] for c, met in tried if met >= 0.999)}
    fewer = plan.with_replicas(one_variant, {"online": best.replicas["online"] - 1})
    assert (
        Simulation(fewer, VARIANTS, Settings(costs=Costs(door_ms=0.05)))
        .run(steadily(2_000.0, 3.0))
        .share("met")
        < 0.999
    )


def test_a_target_that_no_number_of_replicas_holds_is_said_to_be_one() -> None:
    with pytest.raises(plan.TargetOutOfReach, match="a budget is below what its variants take"):
        plan.fit(policy(), VARIANTS, steadily(10.0, 1.0, budget_ms=1.0), 0.9, Settings())


@pytest.mark.parametrize(
    ("requests", "found", "said"),
    [
        (
            [Request(0.0, "other", 10.0, 1)],
            (),
            "a request for model 'other', which the policy does not have; known here: m",
        ),
        ([], (Fault("kill", "x", "online", 0, 0.0),), "a fault of x.online, which the policy does not have"),
    ],
)
def test_what_the_policy_does_not_have_cannot_be_simulated(
    requests: list[Request], found: tuple[Fault, ...], said: str
) -> None:
    with pytest.raises(SimulationError, match=said):
        Simulation(policy(), VARIANTS, Settings(faults=found)).run(requests)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("kill:m.online.1@30s", Fault("kill", "m", "online", 1, 30_000.0)),
        ("slow:m.batch@1min+10s*2.5", Fault("slow", "m", "batch", 0, 60_000.0, 10_000.0, 2.5)),
        ("outage:m.queue@5s+500ms", Fault("outage", "m", "queue", 0, 5_000.0, 500.0)),
    ],
)
def test_faults_are_read_as_people_write_them(text: str, fault: Fault) -> None:
    assert faults.parse(text) == fault


@pytest.mark.parametrize(
    "text",
    [
        "",
        "kill:m@3s",
        "outage:m.online@1s+1s",
        "kill:m.queue@1s",
        "slow:m.online@1s",
        "kill:m.online@soon",
        "slow:m.online@1s+1s*0",
    ],
)
def test_what_is_no_fault_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(faults.FaultError, match=r"fault|how long|duration|factor"):
        faults.parse(text)


@pytest.mark.parametrize("text", ["m", "m:fast", "m:1s:0", "m:1s:1:0", "m:1s:1:1:1", "m:1s,"])
def test_what_is_no_mix_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(workload.MixError, match="MODEL:BUDGET"):
        workload.parse_mix(text)


def test_a_traces_columns_say_what_a_request_is_and_the_mix_says_the_rest() -> None:
    arrivals = [
        trace.Arrival(0.0, {"model": "n", "budget": "2s", "rows": "3", "tenant": "t"}),
        trace.Arrival(1.0, {"budget_ms": 70}),
        trace.Arrival(3.0, {"budget": "0.5"}),
    ]
    assert workload.from_trace(arrivals, [Share("m", 50.0, 4)], 1, scale=2.0) == [
        Request(0.0, "n", 2_000.0, 3, "t"),
        Request(500.0, "m", 70.0, 4),
        Request(1_500.0, "m", 500.0, 4),
    ]
    for bad in ({"rows": "0"}, {"rows": "many"}, {"budget": "soon"}, {"budget_ms": "-1"}):
        with pytest.raises(trace.TraceError, match="the trace:0: "):
            workload.from_trace([trace.Arrival(0.0, bad)], [Share("m", 50.0)], 1)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(simulate, "read_variants", lambda chosen, source: VARIANTS)
    monkeypatch.chdir(tmp_path)
    text = (
        "models:\n  m:\n    artifacts: a\n    online: {variants: [%s], max_batch: 32}\n"
        "routes:\n  - {name: r, to: online}\n"
        "defaults: {budget: 200ms}\n"
    )
    (tmp_path / "p.yaml").write_text(text % "best")
    (tmp_path / "q.yaml").write_text(text % "quick")
    (tmp_path / "t.csv").write_text("timestamp\n" + "\n".join(str(n / 100) for n in range(500)))
    return tmp_path


def say(*args: str) -> tuple[int, str]:
    done = CliRunner().invoke(simulate.simulate, args)
    return done.exit_code, done.output


def test_two_policies_stand_side_by_side_on_the_same_arrivals(files: Path) -> None:
    code, text = say(
        "p.yaml", "--trace", "t.csv", "--compare", "q.yaml", "--json", "o.json", "--picture", "o.png"
    )
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()[:3]] == ["policy", "p.yaml", "q.yaml"]
    told = orjson.loads((files / "o.json").read_bytes())
    assert told["p.yaml"]["requests"] == told["q.yaml"]["requests"] == 500
    assert told["p.yaml"]["routes"]["r"]["latency_ms_p50"] > told["q.yaml"]["routes"]["r"]["latency_ms_p50"]
    assert (files / "o.png").read_bytes().startswith(b"\x89PNG")


def test_the_numbers_go_to_standard_output_alone_or_to_a_file_that_can_be_written(files: Path) -> None:
    code, text = say("p.yaml", "--trace", "t.csv", "--json", "-")
    assert (code, orjson.loads(text)["p.yaml"]["requests"]) == (0, 500)
    code, text = say("p.yaml", "--trace", "t.csv", "--json", "t.csv/o.json")
    assert (code, "--json t.csv/o.json: cannot be written: " in text) == (1, True)


def test_a_picture_that_cannot_be_written_is_said_before_the_work(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "Simulation", lambda *_: pytest.fail("it began"))
    code, text = say("p.yaml", "--trace", "t.csv", "--picture", "t.csv/o.png")
    assert (code, "--picture t.csv/o.png: cannot be written: " in text) == (1, True)


def test_the_fit_prints_how_many_replicas_it_takes(files: Path) -> None:
    code, text = say("p.yaml", "--trace", "t.csv", "--scale", "20", "--fit", "99%")
    assert code == 0
    assert re.search(r"^p\.yaml: online=[2-4] meet (99|100)\.\d+% of the deadlines$", text, re.MULTILINE)
    assert "online=1: " in text


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("p.yaml", "--mix", "x:1s"), "model 'x', which the policy does not have; known here: m"),
        (("p.yaml", "--replicas", "online=0"), "write online=2, batch=4 or both"),
        (("p.yaml", "--fit", "most"), "not a share; write 99.9% or 0.999"),
        (("p.yaml", "--trace", "none.csv"), "cannot be read"),
        (("p.yaml", "--fault", "kill:me"), "is not a fault"),
        (("none.yaml",), "cannot read the policy file"),
        (("p.yaml", "--observed", "t.csv"), "not what `hybrid-router status --json` writes"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(files: Path, args: tuple[str, ...], said: str) -> None:
    code, text = say(*args)
    assert code == 1
    assert said in text


def test_times_as_a_live_deployment_sees_them_take_the_place_of_the_measured_ones(tmp_path: Path) -> None:
    live = profile(50.0, 1.0)
    told = {
        "models": [{"name": "m", "stats": {"online": {"hop_ms": 9.0, "profiles": {"best": live.to_json()}}}}]
    }
    (tmp_path / "status.json").write_bytes(orjson.dumps(told))
    seen = observed.read(tmp_path / "status.json")
    variants = seen.variants(VARIANTS)
    assert variants["m"]["best"].profile == live
    assert variants["m"]["quick"] == VARIANTS["m"]["quick"]
    assert seen.costs(Costs()).hop_ms == 9.0


def observed_at(batch: int, median_ms: float, hop_ms: float, *shares: float) -> observed.Observed:
    profile = LatencyProfile((ProfilePoint(batch, median_ms, 2.0 * median_ms),))
    return observed.Observed({"m": {"v": profile}}, hop_ms, 0.5 * hop_ms, {"m": shares} if shares else {})


def test_several_moments_of_a_deployment_count_as_their_average() -> None:
    seen = observed.mean([observed_at(1, 10.0, 2.0, 1.0, 0.0), observed_at(1, 20.0, 4.0, 0.5, 0.5)])
    profile = seen.profiles["m"]["v"]
    assert (profile.predict_ms(1), profile.bound_ms(1)) == (15.0, 30.0)
    assert (seen.hop_ms, seen.hop_deviation_ms) == (3.0, 1.5)
    assert seen.row_cost_shares == {"m": [0.75, 0.25]}
    with pytest.raises(observed.ObservedError, match="not of the same deployment"):
        observed.mean([observed_at(1, 10.0, 2.0), observed_at(2, 10.0, 2.0)])


def test_several_moments_follow_each_other_in_the_simulation() -> None:
    each = [observed_at(1, 10.0, 1.0), observed_at(1, 40.0, 1.0)]
    measured = {"m": {"v": MeasuredVariant("v", each[0].profiles["m"]["v"])}}
    moments = observed.moments(each, measured, Costs())
    model = {"artifacts": "a", "online": {"variants": ["v"]}}
    found = Simulation(policy(model), measured, Settings(moments=moments)).run(steadily(5.0, 20.0))
    latencies_ms = found.routes["r"].latencies_ms
    assert len(latencies_ms) == 100
    # They come in the order of the answers: ten seconds with the first moment's times, ten with the second's.
    assert max(latencies_ms[:49]) < 30.0 < min(latencies_ms[51:])
    assert observed.moments(each[:1], measured, Costs()) == ()


def test_rows_are_drawn_with_the_weights_that_were_seen() -> None:
    requests = [workload.Request(float(n), "m", 50.0, 1) for n in range(2_000)]
    row_costs = [r.row_cost for r in observed_at(1, 1.0, 1.0, 0.8, 0.0, 0.2).with_row_costs(requests, 7)]
    assert set(row_costs) == {1, 3}
    assert row_costs.count(3) == pytest.approx(400, rel=0.15)
    assert [r.row_cost for r in observed_at(1, 1.0, 1.0).with_row_costs(requests[:3], 7)] == [0, 0, 0]


@pytest.mark.parametrize("shares", [[0.0, 0.0], [1.5, -0.5], ["many"], 7])
@pytest.mark.parametrize("key", ["row_cost_shares", "row_weights"])
def test_row_costs_that_are_no_shares_are_an_error_in_one_sentence(
    tmp_path: Path, shares: object, key: str
) -> None:
    online = {"hop_ms": 1.0, "profiles": {}, key: shares}
    path = tmp_path / "status.json"
    path.write_bytes(orjson.dumps({"models": [{"name": "m", "stats": {"online": online}}]}))
    with pytest.raises(observed.ObservedError, match="not what `hybrid-router status --json` writes"):
        observed.read(path)


@pytest.mark.parametrize("sigma", [0.3, 0.6, 1.0])
def test_a_hop_as_observed_is_drawn_with_its_mean_and_its_deviation(sigma: float) -> None:
    drawn = Timing(Costs(hop_ms=6.0, hop_sigma=sigma), random.Random(5))
    seen_ms = [drawn.half_hop_ms() + drawn.half_hop_ms() for _ in range(20_000)]
    mean_ms = fmean(seen_ms)
    deviation_ms = fmean(abs(ms - mean_ms) for ms in seen_ms)
    costs = observed.Observed({}, mean_ms, deviation_ms).costs(Costs())
    assert costs.hop_ms == pytest.approx(6.0, rel=0.15)
    assert costs.hop_sigma == pytest.approx(sigma, rel=0.15)
