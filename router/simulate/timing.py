"""What takes how long in a simulation: drawn so that medians and tails are those that were measured."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from router.policy.facts import MeasuredVariant

#: The standard normal's 99th percentile: with it a drawn tail is the profile's tail.
_Z99 = 2.326
#: A machine is late by much more than it is ever early.
_EARLY = 0.2


@dataclass(frozen=True, slots=True)
class Costs:
    """What a request costs beside the model, ms. The defaults are those of one 2-core machine.

    ``door_ms``: the router process's own work per request; it does one at a time. ``wire_ms``: the rest
    of the way from the client and back. ``hop_ms``: the median from the router to a replica and back, per
    batch; ``hop_sigma``: how far each half of it spreads, of its logarithm, upwards. ``claim_ms``: what a
    worker spends on the queue per batch beside the model. ``restart_ms``: from the death of a replica or
    worker until another has taken its place. ``routers``: how many router replicas share the requests.
    """

    door_ms: float = 0.3
    wire_ms: float = 0.5
    hop_ms: float = 1.2
    hop_sigma: float = 0.3
    claim_ms: float = 1.0
    restart_ms: float = 4_000.0
    routers: int = 1


def mean_over_median(sigma: float) -> float:
    """How much larger the mean of what `Timing` draws is than its median."""
    late = math.exp(sigma**2 / 2.0) * _normal(sigma)
    early = math.exp((_EARLY * sigma) ** 2 / 2.0) * _normal(-_EARLY * sigma)
    return late + early


def _normal(z: float) -> float:
    """The standard normal's distribution function."""
    return 0.5 * (1.0 + math.erf(z / math.sqrt(2.0)))


class Timing:
    """Random durations from one seeded generator."""

    def __init__(self, costs: Costs, draw: random.Random) -> None:
        self.costs = costs
        self._gauss = draw.gauss
        self._now: Mapping[int, MeasuredVariant] = {}
        self._known: dict[tuple[int, int], tuple[float, float]] = {}

    def set_moment(self, costs: Costs, now: Mapping[int, MeasuredVariant]) -> None:
        """From now on it takes what ``costs`` say, and variants (by their `id`) run as ``now`` has them."""
        self.costs, self._now = costs, now
        self._known.clear()

    def run_ms(self, variant: MeasuredVariant, rows: int) -> float:
        """How long a batch of ``rows`` takes on ``variant`` this time."""
        key = (id(variant), rows)
        known = self._known.get(key)
        if known is None:
            profile = self._now.get(id(variant), variant).profile
            median = profile.predict_ms(rows)
            known = self._known[key] = (median, math.log(profile.bound_ms(rows) / median) / _Z99)
        return self._spread(*known)

    def half_hop_ms(self) -> float:
        return self._spread(self.costs.hop_ms / 2.0, self.costs.hop_sigma)

    def _spread(self, median_ms: float, sigma: float) -> float:
        z = self._gauss(0.0, 1.0)
        return median_ms * math.exp(sigma * (z if z > 0.0 else _EARLY * z))
