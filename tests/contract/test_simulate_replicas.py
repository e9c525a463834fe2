"""Replicas that differ, in virtual time: slower than the others, stopped, or shared by several routers.

Each is played twice, with what the router learns about its replicas and without: what it is for shows.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from router.policy import Policy, parse
from router.policy.facts import MeasuredVariant
from router.scheduling.replica_set import ReplicaSet
from router.scheduling.replica_state import ReplicaState
from router.simulate import plan
from router.simulate.engine import Settings, Simulation, SimulationError
from router.simulate.faults import Fault
from router.simulate.result import SimulationResult
from router.simulate.timing import Costs
from router.simulate.workload import Request
from tests.support.simulated import profile

pytestmark = pytest.mark.slow

#: 36 ms for 32 rows: about 890 rows a second for each replica at its best.
VARIANTS = {"m": {"only": MeasuredVariant("only", profile(4.0, 1.0, 1.4))}}
REPLICA_ROWS_PER_S = 32_000.0 / 36.0
SLOW = Fault("slow", "m", "online", 0, 0.0, 1e9, 3.0)
BUDGETS_MS = (60.0, 120.0, 120.0, 400.0)


def play(
    rate_per_s: float,
    *faults: Fault,
    budgets_ms: tuple[float, ...] = BUDGETS_MS,
    seconds: float = 12.0,
    replicas: int = 2,
    routers: int = 1,
) -> SimulationResult:
    online: dict[str, Any] = {"variants": ["only"], "max_batch": 32, "replicas": replicas}
    policy = Policy.model_validate(
        {
            "models": {"m": {"artifacts": "a", "online": online}},
            "routes": [{"name": "r", "to": "online"}],
        }
    )
    draw, at_ms, requests = random.Random(1), 0.0, []
    while at_ms < seconds * 1_000.0:
        at_ms += draw.expovariate(rate_per_s / 1_000.0)
        requests.append(Request(at_ms, "m", draw.choice(budgets_ms), 1))
    settings = Settings(costs=Costs(door_ms=0.02, routers=routers), faults=faults)
    result = Simulation(policy, VARIANTS, settings).run(requests)
    assert result.violations == []
    assert result.requests == len(requests)
    return result


def bound(result: SimulationResult) -> float:
    """How often the truth lay within what was predicted."""
    tally = result.routes["r"]
    return tally.within_bound / tally.predicted


@pytest.mark.parametrize(
    ("share", "budgets_ms", "better"),
    [(0.7, BUDGETS_MS, 0.05), (0.4, (30.0, 40.0), 0.2)],
    ids=["a load that needs both", "budgets that the slow one cannot make"],
)
def test_a_slow_replica_with_a_profile_of_its_own_costs_fewer_deadlines_than_with_the_common_one(
    share: float, budgets_ms: tuple[float, ...], better: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate_per_s = share * (1.0 + 1.0 / 3.0) * REPLICA_ROWS_PER_S
    slow = play(rate_per_s, SLOW, budgets_ms=budgets_ms)
    monkeypatch.setattr(ReplicaSet, "pace", lambda replica_set, replica, slower: False)
    common = play(rate_per_s, SLOW, budgets_ms=budgets_ms)
    assert slow.share("met") > common.share("met") + better
    assert slow.met_of_accepted > max(0.995, common.met_of_accepted)


def test_a_replica_that_was_slow_for_a_while_is_used_like_the_others_again() -> None:
    rate_per_s = 1.3 * REPLICA_ROWS_PER_S
    healthy = play(rate_per_s, seconds=20.0)
    passed = play(rate_per_s, Fault("slow", "m", "online", 0, 1_000.0, 3_000.0, 3.0), seconds=20.0)
    lasting = play(rate_per_s, Fault("slow", "m", "online", 0, 1_000.0, 1e9, 3.0), seconds=20.0)
    abandon = healthy.share("met") - passed.share("met")
    assert abandon < 0.4 * (healthy.share("met") - lasting.share("met"))


def test_a_new_replica_in_the_place_of_a_slow_one_starts_from_the_common_profile() -> None:
    kill = Fault("kill", "m", "online", 0, 2_000.0)
    # Slow in its first life only: what is simulated as slow is a place, so the fault ends when it dies.
    slow = Fault("slow", "m", "online", 0, 0.0, 2_000.0, 3.0)
    found = play(1.2 * REPLICA_ROWS_PER_S, slow, kill, seconds=12.0)
    steady = play(1.2 * REPLICA_ROWS_PER_S, kill, seconds=12.0)
    assert found.share("met") > steady.share("met") - 0.06


def test_a_stopped_replica_gets_no_batches_and_its_callers_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop = Fault("stop", "m", "online", 0, 3_000.0, 4_000.0)
    rate_per_s = 0.8 * REPLICA_ROWS_PER_S
    watched = play(rate_per_s, stop)
    monkeypatch.setattr(ReplicaSet, "mark_silent", lambda replica_set, now_ms: None)
    monkeypatch.setattr(
        "router.simulate.online._SimulatedDelivery._overdue", lambda delivery, first_time=False: None
    )
    trusting = play(rate_per_s, stop)
    broken = [
        tally.outcomes["late"] + tally.outcomes["expired"]
        for tally in (watched.routes["r"], trusting.routes["r"])
    ]
    assert broken[0] < broken[1] / 10
    assert watched.share("met") > trusting.share("met") + 0.03


def test_nobody_waits_for_a_stopped_replica_longer_than_its_silence_takes_to_be_one() -> None:
    found = play(0.4 * REPLICA_ROWS_PER_S, Fault("stop", "m", "online", 0, 3_000.0, 4_000.0), replicas=1)
    tally = found.routes["r"]
    assert max(tally.latencies_ms) < 4_000.0
    assert tally.outcomes["refused"] > 10 * tally.outcomes["expired"] > 0


@pytest.mark.parametrize(("routers", "share"), [(2, 0.7), (3, 0.5)])
def test_routers_side_by_side_learn_each_others_share_and_keep_their_promises(
    routers: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate_per_s = share * 2 * REPLICA_ROWS_PER_S
    aware = play(rate_per_s, routers=routers)
    monkeypatch.setattr(ReplicaState, "shared", property(lambda replica: False))
    alone = play(rate_per_s, routers=routers)
    assert aware.met_of_accepted > 0.99
    assert bound(aware) > 0.95
    assert bound(alone) < 0.7
    assert aware.share("met") > alone.share("met") + 0.02


def test_one_router_alone_learns_nothing_of_others_who_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    aware = play(1.6 * REPLICA_ROWS_PER_S).to_json()
    monkeypatch.setattr(ReplicaState, "shared", property(lambda replica: False))
    assert aware == play(1.6 * REPLICA_ROWS_PER_S).to_json()


def test_a_model_in_the_router_stays_one_and_is_not_shared_by_several() -> None:
    own = "models: {m: {artifacts: a, online: {variants: [only], in_router: true}}}"
    policy = parse(own + "\nroutes: [{name: r, to: online}]")
    online = plan.with_replicas(policy, {"online": 4}).models["m"].online
    assert online and online.replicas == 1
    with pytest.raises(
        SimulationError, match=r"models\.m\.online\.in_router: of several routers each has a copy"
    ):
        Simulation(policy, VARIANTS, Settings(costs=Costs(routers=2)))


def test_a_batch_that_only_a_stopped_replica_could_run_is_given_up_within_bounds() -> None:
    """As the dispatcher's timeout does it, for a request that may not be dropped: 5 s and some bounds."""
    policy = Policy.model_validate(
        {
            "models": {"m": {"artifacts": "a", "online": {"variants": ["only"], "replicas": 1}}},
            "routes": [{"name": "r", "to": "online", "on_miss": ["degrade"]}],
        }
    )
    stop = Fault("stop", "m", "online", 0, 0.5, 60_000.0)
    requests = [Request(0.0, "m", 30_000.0, 1)]
    result = Simulation(policy, VARIANTS, Settings(faults=(stop,))).run(requests)
    assert result.violations == []
    assert result.routes["r"].outcomes == {"failed": 1}
    assert result.seconds == pytest.approx(10.4, abs=0.5)
