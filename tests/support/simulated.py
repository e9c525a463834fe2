"""Random policies, arrivals and faults for the simulator, all from one seed, so that a failure replays."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, NamedTuple

from optimizers.profile import LatencyProfile, ProfilePoint
from router.policy import Policy
from router.policy.facts import MeasuredVariant
from router.simulate.engine import Settings, Simulation
from router.simulate.faults import Fault
from router.simulate.result import SimulationResult
from router.simulate.timing import Costs
from router.simulate.workload import Request

SECONDS = 12.0


class Case(NamedTuple):
    policy: Policy
    variants: dict[str, dict[str, MeasuredVariant]]
    requests: list[Request]
    settings: Settings

    def run(self) -> SimulationResult:
        return Simulation(self.policy, self.variants, self.settings).run(self.requests)


def profile(fixed_ms: float, row_ms: float, tail: float = 1.2) -> LatencyProfile:
    """``fixed_ms + row_ms * n``, 99 of 100 within ``tail`` times that."""
    sizes = (1, 2, 4, 8, 16, 32)
    times = [(n, fixed_ms + row_ms * n) for n in sizes]
    return LatencyProfile(tuple(ProfilePoint(n, ms, ms * tail) for n, ms in times))


def random_case(seed: int) -> Case:
    """One to two models with either side or both, one to three routers, up to twice their capacity, up to
    six faults; tenants with limits and weights, and routes on whatever a route can depend on."""
    draw = random.Random(seed)
    models, variants, requests, faults = {}, {}, list[Request](), list[Fault]()
    for name in ("a", "b")[: draw.randint(1, 2)]:
        fixed_ms, row_ms = draw.uniform(0.2, 10.0), draw.uniform(0.05, 3.0)
        variants[name] = {
            "best": MeasuredVariant("best", profile(fixed_ms, row_ms, draw.uniform(1.0, 3.0))),
            "quick": MeasuredVariant(
                "quick", profile(fixed_ms / 4, row_ms / 4, draw.uniform(1.0, 3.0)), 0.01
            ),
        }
        sides = draw.choice((("online",), ("batch",), ("online", "batch"), ("online", "batch")))
        models[name] = _model(draw, sides)
        for _ in range(draw.randint(0, 3)):
            faults.append(_fault(draw, name, draw.choice(sides)))
        capacity = (
            32_000.0 / (fixed_ms + 32 * row_ms) * models[name].get("online", {"replicas": 1})["replicas"]
        )
        requests += _requests(draw, name, min(150.0, capacity * draw.uniform(0.1, 2.0)), fixed_ms + row_ms)
    routes = [
        *asking_routes(random.Random(-1 - seed), any("online" in model for model in models.values())),
        {"name": "tight", "when": {"budget": "<= 200ms"}, "to": "online"},
        {"name": "kept", "when": {"budget": "<= 1s"}, "to": "online", "on_miss": ["degrade"]},
        {"name": "rest", "to": draw.choice(("auto", "batch"))},
    ]
    requests.sort(key=lambda request: request.at_ms)
    costs = Costs(restart_ms=draw.uniform(200.0, 5_000.0), routers=draw.choice((1, 1, 2, 3)))
    others = random.Random(-2 - seed)
    policy = Policy.model_validate({"models": models, "routes": routes, **tenants(others)})
    requests = [asking(others, request) for request in requests]
    return Case(policy, variants, requests, Settings(seed, costs, tuple(faults)))


def tenants(draw: random.Random) -> dict[str, Any]:
    """The sections ``tenants`` and ``limits`` of a policy: bounds that are reached now and then."""
    own: dict[str, dict[str, Any]] = {"big": {"weight": draw.choice((1, 3))}, "small": {}, "third": {}}
    for name, limits in (
        ("big", {"rate": "40/s", "burst": 5}),
        ("small", {"row_rate": "60/s", "in_flight": 3}),
        ("third", {"models": ["a"]}),
        ("third", {"queue": {"jobs": 2}}),
    ):
        if draw.random() < 0.5:
            own[name] |= limits
    limits = {"queue": {"jobs": draw.choice((20, 1_000_000))}, "rows": draw.choice((30, 4096))}
    return {"tenants": own, "limits": limits}


def asking_routes(draw: random.Random, online: bool) -> list[dict[str, Any]]:
    """Routes on a tenant, a header, a parameter and the time of day; with a split and a shadow where a model
    is online, so that there are two variants."""
    to = draw.choice(("online", "batch", "auto"))
    split = {"split": {"best": 3, "quick": 1}} if online else {}
    shadow = {"shadow": {"variant": "quick", "share": 0.5}} if online else {}
    return [
        {"name": "big", "when": {"tenant": "big", "rows": "> 10"}, "to": to, "on_miss": ["degrade"]},
        {"name": "gold", "when": {"header": {"X-Tier": "gold"}}, "to": "auto", "quality": {"max_drop": 0}},
        {
            "name": "explained",
            "when": {"parameter": {"explain": True}},
            "to": draw.choice(("online", "auto")),
            **split,
        },
        {
            "name": "night",
            "when": {"time": "22:00-06:00 Europe/Vienna", "tenant": ["big", "third"]},
            "to": "auto",
            **shadow,
        },
    ]


def asking(draw: random.Random, request: Request) -> Request:
    """The request with more about it that a policy may ask."""
    return replace(
        request,
        tenant=draw.choice(("", "big", "small", "third")),
        variant=draw.choice((None, None, None, None, None, "best", "quick")),
        headers={b"x-tier": draw.choice((b"gold", b"silver"))} if draw.random() < 0.3 else {},
        parameters={"explain": draw.choice((True, 1, "true"))} if draw.random() < 0.3 else {},
        epoch_s=1_800_000_000.0 + draw.uniform(0.0, 86_400.0),
    )


def _model(draw: random.Random, sides: tuple[str, ...]) -> dict[str, Any]:
    model: dict[str, Any] = {"artifacts": "a"}
    if "online" in sides:
        model["online"] = {
            "variants": ["best", "quick"],
            "replicas": draw.randint(1, 4),
            "max_batch": draw.choice((1, 8, 32)),
            "max_waiting": draw.choice((5, 10_000)),
        }
    if "batch" in sides:
        model["batch"] = {
            "variant": draw.choice(("best", "quick")),
            "workers": draw.choice((1, 2, 3, {"min": 0, "max": 3, "idle": "1s"})),
            "max_batch": draw.choice((1, 16, 32)),
            "lease": draw.choice(("1s", "30s")),
        }
    return model


def _requests(draw: random.Random, model: str, rate_per_s: float, service_ms: float) -> list[Request]:
    found, at_ms = [], 0.0
    while at_ms < SECONDS * 1_000.0:
        at_ms += draw.expovariate(rate_per_s / 1_000.0)
        budget_ms = service_ms * draw.choice((0.5, 3.0, 10.0, 100.0, 10_000.0))
        rows = draw.choice((1, 1, 1, 1, 7, 50))
        found.append(Request(at_ms, model, max(1.0, budget_ms), rows, draw.choice(("", "big", "small"))))
    return found


def _fault(draw: random.Random, model: str, side: str) -> Fault:
    at_ms, lasts_ms = draw.uniform(0.0, SECONDS * 1_000.0), draw.uniform(100.0, 8_000.0)
    if side == "batch" and draw.random() < 0.3:
        return Fault("outage", model, "queue", 0, at_ms, lasts_ms)
    kind: Any = draw.choice(("kill", "slow", "stop" if side == "online" else "kill"))
    return Fault(
        kind, model, "online" if side == "online" else "batch", draw.randint(0, 3), at_ms, lasts_ms, 4.0
    )
