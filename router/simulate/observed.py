"""Times as a live deployment sees them: its corrected profiles, read from ``hybrid-router status --json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from optimizers.profile import LatencyProfile, ProfileError
from router.simulate.engine import Variants
from router.simulate.timing import Costs


class ObservedError(ValueError):
    """A file that does not hold what ``status --json`` writes."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Live profiles by model and variant, and the mean hop to a replica, ms, where one was seen."""

    profiles: Mapping[str, Mapping[str, LatencyProfile]]
    hop_ms: float | None

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
        return costs if self.hop_ms is None else replace(costs, hop_ms=self.hop_ms)


def read(path: Path) -> Observed:
    """Raises `ObservedError`."""
    try:
        told = orjson.loads(path.read_bytes())
        online = {m["name"]: m["stats"]["online"] for m in told["models"] if "online" in m["stats"]}
        profiles = {
            model: {name: LatencyProfile.from_json(p) for name, p in stats["profiles"].items()}
            for model, stats in online.items()
        }
        hops = [float(stats["hop_ms"]) for stats in online.values()]
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
    return Observed(profiles, sum(hops) / len(hops) if hops else None)
