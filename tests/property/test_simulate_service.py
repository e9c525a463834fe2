"""Random requests under random policies: the simulator decides of each what the service decides."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from router.policy import Policy
from router.policy.facts import MeasuredVariant
from router.simulate.faults import Fault
from router.simulate.result import REFUSALS
from router.simulate.workload import Request
from tests.support.effort import tries
from tests.support.simulated import asking, asking_routes, profile, tenants
from tests.support.twins import Case, served, simulated, wall_clock_s

SEEDS = range(tries(16))
#: A batch of one takes 41 ms or 11; no time varies.
VARIANTS = {
    name: {
        "best": MeasuredVariant("best", profile(40.0, 1.0, 1.0)),
        "quick": MeasuredVariant("quick", profile(10.0, 1.0, 1.0), 0.01),
    }
    for name in ("a", "b")
}
ONLINE: dict[str, Any] = {"artifacts": "a", "online": {"variants": ["best", "quick"], "rescue": {"share": 0}}}
MODELS = {"a": {**ONLINE, "batch": {"variant": "best", "max_batch": 32}}, "b": ONLINE}


def random_case(seed: int, gaps_ms: tuple[float, ...] | None = None) -> Case:
    draw = random.Random(seed)
    rest = {
        "name": "rest",
        "to": draw.choice(("online", "auto")),
        "on_miss": [draw.choice(("reject", "degrade"))],
    }
    queued = {"name": "queued", "when": {"budget": "> 10s", "model": "a"}, "to": "batch"}
    routes = [*asking_routes(draw, online=True), queued, rest]
    draw.shuffle(routes)
    limits = {"rows": draw.choice((30, 4_096)), "queue": {"jobs": draw.choice((3, 1_000))}}
    policy = Policy.model_validate(
        {"models": MODELS, "routes": routes, **tenants(draw), "limits": limits, "defaults": {"hold": "2s"}}
    )
    requests, at_ms = list[Request](), 1.0
    gaps_ms = gaps_ms or draw.choice(((5.0, 40.0, 250.0, 900.0), (2.0, 10.0, 30.0)))
    for _ in range(120):
        at_ms += draw.choice(gaps_ms) * draw.uniform(0.8, 1.2)
        budget_ms = draw.choice((5.0, 30.0, 80.0, 2_000.0, 600_000.0))
        asked = asking(draw, Request(at_ms, draw.choice("ab"), budget_ms, draw.choice((1, 1, 3, 20, 40))))
        requests.append(replace(asked, epoch_s=wall_clock_s(at_ms)))
    return Case(policy, VARIANTS, requests, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("routers", [1, 2])
def test_service_and_simulator_decide_alike(seed: int, routers: int) -> None:
    case = random_case(seed)._replace(routers=routers)
    assert simulated(case) == served(case)


@pytest.mark.parametrize("seed", SEEDS)
def test_they_decide_alike_while_the_queue_is_out_of_reach(seed: int) -> None:
    case, draw = random_case(seed, gaps_ms=(250.0, 900.0)), random.Random(seed)
    third_ms = case.requests[-1].at_ms / 3.0
    begins = [(n + draw.uniform(0.1, 0.3)) * third_ms for n in range(3)]
    outages = [Fault("outage", "a", "queue", 0, at_ms, draw.choice((500.0, 5_000.0))) for at_ms in begins]
    case = case._replace(outages=tuple(outages))
    assert simulated(case) == served(case)


def test_the_requests_meet_every_route_path_variant_and_refusal() -> None:
    found = [decided for seed in SEEDS for decided in simulated(random_case(seed))]
    assert {d.route for d in found} == {"", "big", "gold", "explained", "night", "queued", "rest"}
    assert {(d.path, d.variant) for d in found if not d.refused_for} == {
        (path, variant) for path in ("online", "batch") for variant in ("best", "quick")
    }
    assert {d.refused_for for d in found} == {"", *REFUSALS}
