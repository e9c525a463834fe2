"""The simulator rescues queued work and scales its workers by the functions that production calls."""

from __future__ import annotations

from typing import Any

import pytest

from router.policy import Policy
from router.policy.facts import MeasuredVariant
from router.simulate.engine import Settings, Simulation
from router.simulate.faults import Fault
from router.simulate.result import SimulationResult
from router.simulate.timing import Costs
from router.simulate.workload import Request
from tests.support.simulated import profile

pytestmark = pytest.mark.slow

#: A batch of 32 rows takes 41 ms: a worker drains about 780 rows a second.
VARIANTS = {
    "m": {
        "best": MeasuredVariant("best", profile(9.0, 1.0)),
        "quick": MeasuredVariant("quick", profile(2.0, 0.2), 0.01),
    }
}


def play(
    batch: dict[str, Any], share: float, requests: list[Request], *faults: Fault, **costs: Any
) -> SimulationResult:
    online = {"variants": ["best", "quick"], "max_batch": 32, "rescue": {"share": share}}
    model = {
        "artifacts": "a",
        "online": online,
        "batch": {"variant": "best", "max_batch": 32, "lease": "2s", **batch},
    }
    routes = [{"name": "r", "to": "batch", "on_miss": ["degrade"]}]
    policy = Policy.model_validate({"models": {"m": model}, "routes": routes})
    result = Simulation(policy, VARIANTS, Settings(costs=Costs(**costs), faults=faults)).run(requests)
    assert result.violations == []
    assert result.requests == len(requests)
    return result


def steadily(rate_per_s: float, seconds: float, budget_ms: float, from_ms: float = 0.0) -> list[Request]:
    count = int(rate_per_s * seconds)
    return [Request(from_ms + 1_000.0 * n / rate_per_s, "m", budget_ms, 1) for n in range(count)]


def outcomes(result: SimulationResult) -> dict[str, int]:
    return dict(result.routes["r"].outcomes)


def test_what_a_dead_worker_leaves_behind_is_rescued_within_the_share_of_online_time() -> None:
    kill = Fault("kill", "m", "batch", 0, 2_000.0)
    requests = steadily(50.0, 6.0, budget_ms=1_500.0)
    abandon = play({}, 0.0, requests, kill, restart_ms=60_000.0)
    some = play({}, 0.2, requests, kill, restart_ms=60_000.0)
    assert outcomes(abandon)["expired"] > 150
    assert some.share("met") > abandon.share("met") + 0.3
    # What the worker held at its death is leased to it until its deadline has passed.
    assert some.share("met") > 0.9
    assert some.busy_s["m online"] < 0.25 * some.seconds


def test_two_routers_never_rescue_a_job_twice() -> None:
    kill = Fault("kill", "m", "batch", 0, 2_000.0)
    requests = steadily(50.0, 6.0, budget_ms=1_500.0)
    found = play({}, 0.2, requests, kill, restart_ms=60_000.0, routers=2)
    assert found.share("met") > 0.9
    # Each job is a row online or a row of the worker's, beside the two batches that died with him.
    rows = found.batch_rows["m online"] + found.batch_rows["m batch"]
    assert len(requests) - outcomes(found).get("expired", 0) <= rows < len(requests) + 64


def test_a_queue_that_is_in_time_is_left_alone() -> None:
    requests = steadily(50.0, 6.0, budget_ms=30_000.0)
    idle, lent = play({}, 0.0, requests), play({}, 0.5, requests)
    assert idle.share("met") == lent.share("met") == 1.0
    assert idle.batch_rows["m online"] == lent.batch_rows["m online"]  # the probes'


@pytest.mark.parametrize("least", [0, 1])
def test_workers_come_with_the_backlog_and_go_when_it_is_gone(least: int) -> None:
    scale = {"workers": {"min": least, "max": 4, "idle": "3s"}}
    requests = steadily(1_500.0, 8.0, budget_ms=20_000.0) + steadily(1.0, 30.0, 20_000.0, from_ms=8_000.0)
    scaled = play(scale, 0.0, requests, restart_ms=1_000.0)
    fixed = play({"workers": 4}, 0.0, requests)
    assert scaled.share("met") == fixed.share("met") == 1.0
    assert scaled.capacity_s["m batch"] < 0.6 * fixed.capacity_s["m batch"]
    assert scaled.busy_s["m batch"] <= scaled.capacity_s["m batch"]


def test_a_range_costs_the_time_that_its_workers_take_to_start() -> None:
    requests = steadily(200.0, 3.0, budget_ms=2_500.0)
    scale = {"workers": {"min": 0, "max": 2, "idle": "3s"}}
    quick = play(scale, 0.0, requests, restart_ms=500.0)
    slow = play(scale, 0.0, requests, restart_ms=4_000.0)
    assert quick.share("met") > 0.95
    assert slow.share("met") < 0.5


@pytest.mark.parametrize("budget_ms", [300.0, 1_000.0])
def test_workers_with_twice_the_work_that_they_can_do_still_do_it_in_decent_batches(
    budget_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = steadily(1_560.0, 8.0, budget_ms)
    found = play({}, 0.0, requests)
    monkeypatch.setattr("router.simulate.queued.LEAST_SHARE", 0.0)
    eager = play({}, 0.0, requests)
    assert found.share("met") > 2.0 * eager.share("met")
    assert found.to_json()["mean_batch_rows"]["m batch"] > 6.0
    assert outcomes(found).get("late", 0) < outcomes(eager)["late"]
