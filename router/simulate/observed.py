"""Times as a live deployment sees them: its corrected profiles, read from ``hybrid-router status --json``."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson

from optimizers.files.text import read_text
from optimizers.profile import LatencyProfile, ProfileError, ProfilePoint
from router.simulate.engine import Moment, Variants
from router.simulate.timing import Costs, mean_over_median
from router.simulate.workload import Request

#: The mean deviation of a hop of two halves over its mean, for each unit of ``hop_sigma``: of 50,000 drawn
#: ones 0.41 at 0.3, 0.45 at 0.6 and 0.51 at 1.
_DEVIATION_PER_SIGMA = 0.45
_MOST_SIGMA = 1.5


class ObservedError(ValueError):
    """A file that does not hold what ``status --json`` writes."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Live profiles by model and variant; the hop to a replica where one was seen: its mean, ms, and its mean
    deviation; by model, which share of the rows had cost 1, 2 and so on."""

    profiles: Mapping[str, Mapping[str, LatencyProfile]]
    hop_ms: float | None
    hop_deviation_ms: float | None = None
    row_cost_shares: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def with_row_costs(self, requests: Sequence[Request], seed: int) -> list[Request]:
        """The requests with row costs drawn from the observed shares: a trace does not say how long its texts
        are."""
        draw = random.Random(seed)
        found = []
        for request in requests:
            shares = self.row_cost_shares.get(request.model)
            if shares:
                costs = draw.choices(range(1, len(shares) + 1), shares, k=request.rows)
                request = replace(request, row_cost=sum(costs))
            found.append(request)
        return found

    def variants(self, measured: Variants) -> Variants:
        """The measured variants with the live profiles where there are any."""
        return {
            model: {
                name: replace(v, profile=self.profiles.get(model, {}).get(name, v.profile))
                for name, v in found.items()
            }
            for model, found in measured.items()
        }

    def costs(self, costs: Costs) -> Costs:
        if not self.hop_ms:
            return costs
        if self.hop_deviation_ms is None:
            return replace(costs, hop_ms=self.hop_ms)
        sigma = self.hop_deviation_ms / self.hop_ms / _DEVIATION_PER_SIGMA
        sigma = min(_MOST_SIGMA, sigma)
        return replace(costs, hop_ms=self.hop_ms / mean_over_median(sigma), hop_sigma=sigma)


def moments(seen: Sequence[Observed], measured: Variants, costs: Costs) -> tuple[Moment, ...]:
    """Each of them for `Settings.moments`, in this order; none of a single one, which is all there is."""
    if len(seen) < 2:
        return ()
    return tuple(Moment(each.costs(costs), each.variants(measured)) for each in seen)


def mean(seen: Sequence[Observed]) -> Observed:
    """Several moments of one deployment as one: what was seen of each thing, on the average.

    Raises `ObservedError` where they do not tell of the same models, variants and batch sizes.
    """
    first = seen[0]
    hops = [each.hop_ms for each in seen if each.hop_ms is not None]
    spreads = [each.hop_deviation_ms for each in seen if each.hop_deviation_ms is not None]
    try:
        profiles = {
            model: {name: _mean_profile([each.profiles[model][name] for each in seen]) for name in found}
            for model, found in first.profiles.items()
        }
        costs_by_model = {}
        for model in {name: None for each in seen for name in each.row_cost_shares}:
            shares_of_each = [each.row_cost_shares[model] for each in seen if model in each.row_cost_shares]
            costs_by_model[model] = [
                sum(shares) / len(shares_of_each) for shares in zip(*shares_of_each, strict=True)
            ]
    except (KeyError, ValueError) as error:
        raise ObservedError(f"the moments are not of the same deployment: {error!r}") from None
    return Observed(
        profiles,
        sum(hops) / len(hops) if hops else None,
        sum(spreads) / len(spreads) if spreads else None,
        costs_by_model,
    )


def _mean_profile(profiles: Sequence[LatencyProfile]) -> LatencyProfile:
    count = len(profiles)
    points = []
    for at in zip(*(profile.points for profile in profiles), strict=True):
        if len({point.batch for point in at}) > 1:
            raise ValueError(f"batch sizes {sorted({point.batch for point in at})}")
        median_ms, p99_ms = sum(p.median_ms for p in at) / count, sum(p.p99_ms for p in at) / count
        points.append(ProfilePoint(at[0].batch, median_ms, max(median_ms, p99_ms)))
    return LatencyProfile(tuple(points), sum(profile.tail_factor for profile in profiles) / count)


def read(path: Path) -> Observed:
    """Raises `ObservedError`."""
    try:
        status = orjson.loads(read_text(path))
        online = {m["name"]: m["stats"]["online"] for m in status["models"] if "online" in m["stats"]}
        profiles = {
            model: {name: LatencyProfile.from_json(p) for name, p in stats["profiles"].items()}
            for model, stats in online.items()
        }
        hops = [float(stats["hop_ms"]) for stats in online.values()]
        spread = [
            float(stats["hop_deviation_ms"]) for stats in online.values() if "hop_deviation_ms" in stats
        ]
        costs_by_model = {
            model: [float(share) for share in shares]
            for model, stats in online.items()
            # The second is the key's name in files of older routers.
            if (shares := stats.get("row_cost_shares", stats.get("row_weights")))
        }
        for model, shares in costs_by_model.items():
            if not (min(shares) >= 0.0 and 0.0 < sum(shares) < math.inf):
                raise ValueError(f"row_cost_shares of {model!r} are no shares: {shares}")
    except (
        OSError,
        orjson.JSONDecodeError,
        ProfileError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        raise ObservedError(f"{path}: not what `hybrid-router status --json` writes: {error!r}") from None
    return Observed(
        profiles,
        sum(hops) / len(hops) if hops else None,
        sum(spread) / len(spread) if spread else None,
        costs_by_model,
    )
