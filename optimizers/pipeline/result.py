"""What a run of a recipe made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from optimizers.artifact import Artifact
from optimizers.pipeline.goals import GoalResult
from optimizers.pipeline.recipe import Recipe


@dataclass(frozen=True)
class PipelineResult:
    """What a run made: artifacts by variant, why others were skipped, and how each met its goals."""

    recipe: Recipe
    artifacts: Mapping[str, Artifact]
    skipped: Mapping[str, str]
    goals: Mapping[str, tuple[GoalResult, ...]] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        return all(g.holds for results in self.goals.values() for g in results)
