"""A variant's measured figures set beside the goals of its recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optimizers.artifact import Manifest
from optimizers.formats.errors import RecipeError
from optimizers.pipeline.recipe import Goal


@dataclass(frozen=True, slots=True)
class GoalResult:
    """A goal, what was measured, and whether it holds."""

    goal: Goal
    value: float
    holds: bool


def figures(manifest: Manifest, original: Manifest) -> dict[str, float]:
    """Every figure that a goal may name (see :class:`optimizers.pipeline.recipe.Goal`)."""
    found = {
        **manifest.quality,
        "fidelity": manifest.fidelity,
        "size_bytes": float(manifest.size_bytes),
        "size_ratio": original.size_bytes / max(manifest.size_bytes, 1),
        "parameters": float(manifest.parameters),
        "sparsity": manifest.sparsity,
    }
    for point in manifest.profile.points:
        found[f"latency_ms_{point.batch}"] = point.median_ms
        found[f"speedup_{point.batch}"] = original.profile.predict_ms(point.batch) / point.median_ms
    for name, value in manifest.interpretability.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            found.setdefault(name, float(value))
    return found


def judge(goals: Sequence[Goal], measured: Mapping[str, float]) -> tuple[GoalResult, ...]:
    """Each goal with its figure. Raises :class:`RecipeError` for a figure that was not measured."""
    results = []
    for goal in goals:
        value = measured.get(goal.figure, math.nan)
        if math.isnan(value):
            raise RecipeError(
                f"goal {goal.figure!r}: no such figure; this variant has {', '.join(sorted(measured))}"
            )
        results.append(GoalResult(goal, value, goal.holds(value)))
    return tuple(results)
