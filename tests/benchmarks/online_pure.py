"""What deciding costs, in process: one decision, a simulated request, and 200 seeds with random faults."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from optimizers.profile import LatencyProfile, ProfilePoint
from router.policy import Policy
from router.policy.facts import MeasuredVariant
from router.scheduling.admission import RouteFacts, decide
from router.scheduling.prediction import ModelLoad
from router.scheduling.scheduler import Scheduler
from router.simulate import workload
from router.simulate.arrivals import bursty
from router.simulate.engine import Settings, Simulation
from router.simulate.timing import Costs
from router.simulate.workload import Share
from tests.benchmarks.report import Figure, at_least, at_most

_NOW_MS = 1_000.0
#: A clock's jitter and a cache's size are no growth; anything that looks at each that waits is.
_NO_GROWTH = 1.5


class Item(NamedTuple):
    """A request that waits, as the scheduler sees it."""

    deadline_ms: float
    rows: int = 1
    droppable: bool = True
    left: bool = False
    arrived_ms: float = _NOW_MS
    predicted_ms: float = 50.0


def profile(fixed_ms: float, row_ms: float) -> LatencyProfile:
    times = ((n, fixed_ms + row_ms * n) for n in (1, 2, 4, 8, 16, 32))
    return LatencyProfile(tuple(ProfilePoint(n, ms, 1.2 * ms) for n, ms in times))


VARIANTS: Mapping[str, MeasuredVariant] = {
    "best": MeasuredVariant("best", profile(1.0, 0.2)),
    "middle": MeasuredVariant("middle", profile(0.5, 0.1), 0.005),
    "quick": MeasuredVariant("quick", profile(0.25, 0.05), 0.01),
}


def policy(replicas: int, max_waiting: int = 100_000) -> Policy:
    online = {
        "variants": list(VARIANTS),
        "replicas": replicas,
        "max_batch": 32,
        "max_waiting": max_waiting,
    }
    routes = [
        {"name": "bulk", "when": {"budget": "> 30s"}, "to": "auto"},
        {"name": "rest", "to": "online", "quality": {"max_drop": 0.02}},
    ]
    models = {"m": {"artifacts": "none", "online": online}}
    return Policy.model_validate({"models": models, "routes": routes})


def decisions(smoke: bool) -> list[Figure]:
    """One decision, load and all, with 0, 100 and 10,000 requests waiting."""
    spent = {waiting: _decision_us(waiting, 20 if smoke else 400) for waiting in (0, 100, 10_000)}
    detail = {f"{waiting} waiting": us for waiting, us in spent.items()}
    return [
        at_most("one decision with 10,000 waiting", spent[10_000], "us", 10.0, detail),
        at_most(
            "one decision, 10,000 waiting over 100", spent[10_000] / spent[100], "ratio", _NO_GROWTH, detail
        ),
    ]


def _decision_us(waiting: int, rounds: int, each: int = 100) -> float:
    rules = policy(replicas=2)
    scheduler: Scheduler[Item] = Scheduler(VARIANTS, replicas=2, max_batch=32, max_waiting=100_000)
    for number in range(waiting):
        scheduler.add(("best", "middle", "quick")[number % 3], Item(_NOW_MS + 50.0 + 0.01 * number))
    # A budget that the work ahead leaves time for, so that with more waiting the same is decided.
    facts = RouteFacts("m", 1, 20_000.0)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(each):
            decide(facts, rules, ModelLoad(scheduler.load(_NOW_MS), None), _NOW_MS)
        times.append((time.perf_counter() - start) / each * 1e6)
    return statistics.median(times)


def simulator(smoke: bool) -> list[Figure]:
    """Requests a minute on this core, and what one costs with 1,000 replicas against 2."""
    count = 20_000 if smoke else 200_000
    few = [_simulated_us(2, count) for _ in range(1 if smoke else 2)]
    many = [_simulated_us(1_000, count) for _ in range(1 if smoke else 2)]
    us = statistics.median(few)
    detail: dict[str, Any] = {"requests": count, "us with 2 replicas": few, "us with 1,000 replicas": many}
    return [
        at_least("simulated requests a minute on one core", 60e6 / us, "", 1_000_000.0, detail),
        at_most(
            "cost of a simulated request, 1,000 replicas over 2",
            statistics.median(many) / us,
            "ratio",
            3.0,
            detail,
        ),
    ]


def _simulated_us(replicas: int, count: int) -> float:
    """Microseconds of this core for each request, at the same load per replica."""
    rate_per_s = 0.7 * replicas * 32 / VARIANTS["best"].profile.predict_ms(32) * 1e3
    times = bursty(rate_per_s, count / rate_per_s, seed=7)
    requests = workload.generated(times, (Share("m", 100.0),), 7)
    # A door so quick that it is not what limits, however many replicas there are.
    costs = Costs(door_ms=Costs().door_ms / max(1, round(rate_per_s / 1_000.0)))
    simulation = Simulation(policy(replicas), {"m": VARIANTS}, Settings(7, costs))
    start = time.process_time()
    result = simulation.run(requests)
    spent = time.process_time() - start
    if result.violations:
        raise RuntimeError(f"the simulation broke an invariant: {result.violations[0]}")
    return spent / len(requests) * 1e6


def faults(smoke: bool) -> list[Figure]:
    """Random load and faults: broken invariants over 200 seeds."""
    from tests.support.simulated import random_case

    seeds = range(10 if smoke else 200)
    broken: dict[str, list[str]] = {}
    requests = 0
    for seed in seeds:
        case = random_case(seed)
        result = case.run()
        requests += result.requests
        abandon = [f"{len(case.requests)} asked, {result.requests} counted"]
        found = result.violations + (abandon if result.requests != len(case.requests) else [])
        if found:
            broken[str(seed)] = found[:3]
    detail = {"seeds": len(seeds), "requests": requests, "broken": broken}
    return [
        at_most(f"invariants broken in {len(seeds)} seeds with random faults", len(broken), "", 0, detail)
    ]
