"""A variant as decisions see it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from optimizers.profile import LatencyProfile


@dataclass(frozen=True, slots=True)
class MeasuredVariant:
    """A variant as a decision sees it: its time by batch size, and its quality below the original's."""

    name: str
    profile: LatencyProfile
    quality_drop: float = 0.0
