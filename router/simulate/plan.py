"""What a simulation is asked for: other numbers of replicas, or the fewest that hold a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from router.policy import Policy
from router.simulate.engine import Settings, Simulation, SimulationError, Variants
from router.simulate.result import SimulationResult
from router.simulate.workload import Request

MAX_REPLICAS = 1_000


class TargetOutOfReach(SimulationError):
    """No number of replicas holds the target: the message says what was reached."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The fewest replicas found, the share of deadlines met with them, and the run that shows it."""

    replicas: Mapping[str, int]
    met: float
    policy: Policy
    result: SimulationResult


def with_replicas(policy: Policy, counts: Mapping[str, int]) -> Policy:
    """The policy with other numbers of ``online`` replicas and ``batch`` workers, the same for each model;
    of one that the router runs itself there is one all the same."""
    models = {}
    for name, model in policy.models.items():
        online, batch = model.online, model.batch
        if online and not online.in_router and "online" in counts:
            online = online.model_copy(update={"replicas": counts["online"]})
        if batch and "batch" in counts:
            batch = batch.model_copy(update={"workers": counts["batch"]})
        models[name] = model.model_copy(update={"online": online, "batch": batch})
    return policy.model_copy(update={"models": models})


def fit(
    policy: Policy,
    variants: Variants,
    requests: Sequence[Request],
    target: float,
    settings: Settings,
    tried: Callable[[Mapping[str, int], float], None] = lambda counts, met: None,
) -> Fit:
    """The fewest online replicas, then the fewest batch workers, with which ``target`` of all deadlines
    are met. Raises `TargetOutOfReach` where 1,000 of each do not do."""
    kinds = [
        kind
        for kind, has in (
            ("online", any(m.online and not m.online.in_router for m in policy.models.values())),
            ("batch", any(m.batch for m in policy.models.values())),
        )
        if has
    ]
    runs: dict[tuple[int, ...], SimulationResult] = {}

    def met(counts: Mapping[str, int]) -> float:
        key = tuple(counts[kind] for kind in kinds)
        if key not in runs:
            runs[key] = Simulation(with_replicas(policy, counts), variants, settings).run(requests)
            tried(counts, runs[key].share("met"))
        return runs[key].share("met")

    counts = dict.fromkeys(kinds, 1)
    while met(counts) < target:
        if all(count >= MAX_REPLICAS for count in counts.values()):
            raise TargetOutOfReach(
                f"with {MAX_REPLICAS} replicas {met(counts):.3%} of the deadlines are met, not {target:.3%}: "
                "a budget is below what its variants take, or one replica answers too slowly"
            )
        counts = {kind: min(MAX_REPLICAS, 2 * count) for kind, count in counts.items()}
    for kind in kinds:
        low, high = counts[kind] // 2 if counts[kind] > 1 else 0, counts[kind]
        if kind != kinds[0]:
            low = 0  # what the other kind needed says nothing of this one
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if met({**counts, kind: middle}) >= target else (middle, high)
        counts[kind] = high
    share = met(counts)
    result = runs[tuple(counts[kind] for kind in kinds)]
    return Fit(counts, share, with_replicas(policy, counts), result)
