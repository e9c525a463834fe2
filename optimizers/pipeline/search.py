"""Choose a pass's parameters: try combinations in order until the goals hold or tries run out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from optimizers.artifact import Manifest
from optimizers.formats.errors import RecipeError
from optimizers.pipeline.goals import figures, judge
from optimizers.pipeline.recipe import Recipe, Variant
from optimizers.pipeline.recipe_file import candidate

#: Seconds of latency measurement per candidate: enough to choose by, not to report.
TRIAL_SECONDS = 0.3

Trial = Callable[[Variant, Manifest, float], Manifest]


def choose(
    variant: Variant,
    recipe: Recipe,
    trial: Trial,
    original: Manifest,
    say: Callable[[str, str], None],
) -> tuple[Variant, list[dict[str, Any]]]:
    """The variant with the first combination that meets all goals, or the one nearest to them.

    Nearest is by the sum of relative shortfalls; ties go to the earlier. Also gives what was tried.
    ``trial`` makes and measures a candidate on the validation rows.
    """
    search = variant.search
    assert search is not None
    goals = (*recipe.goals, *variant.goals)
    if not goals:
        raise RecipeError("a search needs goals to choose by", "variants", variant.name, "search")
    best: tuple[float, Variant] | None = None
    tried: list[dict[str, Any]] = []
    names = list(search.values)
    for values in itertools.islice(itertools.product(*search.values.values()), search.tries):
        changes = dict(zip(names, values, strict=True))
        spec = candidate(variant.passes[search.step], changes, "variants", variant.name, "search")
        passes = (*variant.passes[: search.step], spec, *variant.passes[search.step + 1 :])
        tentative = replace(variant, passes=passes, search=None)
        say(variant.name, f"trying {', '.join(f'{k}={v}' for k, v in changes.items())}")
        results = judge(goals, figures(trial(tentative, original, TRIAL_SECONDS), original))
        shortfall = sum(r.goal.shortfall(r.value) for r in results)
        tried.append({**changes, "shortfall": shortfall, "goals": {str(r.goal): r.value for r in results}})
        if best is None or shortfall < best[0]:
            best = (shortfall, tentative)
        if shortfall == 0.0:
            break
    assert best is not None  # a Search has at least one value and one try
    return best[1], tried
