"""What each technique is worth: quality, fidelity, size and latency of every example's variants.

``make bench NAME=variants ARGS="--data FOLDER_WITH_BANKING77"``. Variants are made (or taken from the
cache of passes), measured for their manifests, and then measured again side by side: each in turn,
in rounds, so that a drift of the machine's speed meets all of them. Ratios are of that second run.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from optimizers.artifact import Artifact
from optimizers.examples.common import recipe_path
from optimizers.pipeline import measure, pipeline, recipe_file
from optimizers.pipeline.cli import show
from optimizers.pipeline.goals import figures as manifest_figures
from optimizers.pipeline.recipe import Latency, Recipe
from optimizers.pipeline.task_loading import load_task
from optimizers.runner import Runner, load
from optimizers.task import Task
from optimizers.tensors import concat
from tests.benchmarks.report import Figure, at_least, at_most, write

FOLDER = Path("build/bench/variants")
BATCHES = (1, 8, 32)
EXAMPLES = ("digits", "flights", "minilm")


@dataclass(frozen=True)
class Measured:
    """One example: its artifacts, and latency side by side, in ms: variant -> batch -> median."""

    task: Task
    artifacts: Mapping[str, Artifact]
    skipped: Mapping[str, str]
    medians: Mapping[str, Mapping[int, float]]
    row_differences: Mapping[str, float]

    def faster(self, variant: str, than: str, batch: int) -> float:
        return self.medians[than][batch] / self.medians[variant][batch]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with banking77_train.csv and banking77_test.csv")
    parser.add_argument("--examples", nargs="+", choices=EXAMPLES, default=EXAMPLES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--smoke", action="store_true", help="a few variants and little time: does it run?")
    chosen = parser.parse_args()
    rows: list[Figure] = []
    tables: dict[str, Any] = {}
    for name in chosen.examples:
        found = make(name, chosen.data if name == "minilm" else None, chosen.smoke, chosen.rounds)
        rows += [*example_figures(name, found), *common_figures(name, found)]
        tables[name] = table(found)
    write("variants", rows, variants=tables)


def make(name: str, data: Path | None, smoke: bool, rounds: int) -> Measured:
    """Make an example's variants with fresh manifests, then measure them side by side."""
    recipe = recipe_file.read(recipe_path(name))
    if data:
        recipe = replace(recipe, data=str(data))
    if smoke:
        recipe, rounds = _smaller(recipe), 2
    out = FOLDER / name
    for old in out.glob("*/manifest.json"):
        shutil.rmtree(old.parent)
    task = load_task(recipe.task, out / ".cache", lambda message: show("", message), recipe.data)
    result = pipeline.run(recipe, out, task=task, progress=show)
    runners = {variant: load(found) for variant, found in result.artifacts.items()}
    try:
        medians = side_by_side(runners, task, rounds)
        differences = {variant: row_difference(runner, task) for variant, runner in runners.items()}
    finally:
        for runner in runners.values():
            runner.close()
    return Measured(task, result.artifacts, result.skipped, medians, differences)


def _smaller(recipe: Recipe) -> Recipe:
    wanted = [v for v in recipe.variants if v.name in ("float32", "int8", "tree", "rules", "channels_half")]
    return replace(recipe, variants=tuple(wanted), latency=Latency(BATCHES, 0.3))


def side_by_side(runners: Mapping[str, Runner], task: Task, rounds: int) -> dict[str, dict[int, float]]:
    """Median over rounds of each round's median, per variant and batch, in ms."""
    inputs = {n: measure.rows(task.test, n) for n in BATCHES}
    seen: dict[tuple[str, int], list[float]] = {}
    for turn in range(rounds + 1):
        for n in BATCHES:
            for variant, runner in runners.items():
                times = _times(runner, inputs[n])
                if turn:  # the first round warms up
                    seen.setdefault((variant, n), []).append(statistics.median(times))
    return {v: {n: statistics.median(seen[v, n]) for n in BATCHES} for v in runners}


def _times(runner: Runner, batch: Any, seconds: float = 0.03, least: int = 3) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        runner.run(batch)
        times.append((time.perf_counter() - start) * 1e3)
    return times


def row_difference(runner: Runner, task: Task, count: int = 32) -> float:
    """Largest absolute difference of float outputs between rows alone and in a batch.

    On other rows than those that the manifest's tolerance was taken from.
    """
    batch = {name: array[-count:] for name, array in task.test.inputs.items()}
    together = runner.run(batch)
    alone = concat([runner.run({k: v[i : i + 1] for k, v in batch.items()}) for i in range(count)])
    return max(
        (float(np.max(np.abs(v - alone[k]))) for k, v in together.items() if v.dtype.kind == "f"), default=0.0
    )


def common_figures(name: str, found: Measured) -> list[Figure]:
    """What must hold for every variant of every example."""
    drift = {
        f"{variant} at {n}": abs(found.medians[variant][n] / a.manifest.profile.predict_ms(n) - 1)
        for variant, a in found.artifacts.items()
        for n in BATCHES
    }
    worst = max(drift, key=lambda k: drift[k])
    middle = statistics.median(drift.values())
    over = [v for v, d in found.row_differences.items() if d > found.artifacts[v].manifest.tolerance]
    return [
        at_most(f"{name}: manifest profile against a fresh measurement, median", middle, "ratio", 0.2, drift),
        Figure(f"{name}: the same, worst variant and batch", drift[worst], "ratio", detail=worst),
        at_most(f"{name}: variants whose rows differ by batch beyond tolerance", len(over), "", 0, over),
    ]


def example_figures(name: str, found: Measured) -> list[Figure]:
    return {"digits": _digits, "flights": _flights, "minilm": _minilm}[name](found)


def _digits(found: Measured) -> list[Figure]:
    original = found.artifacts["float32"].manifest
    int8 = manifest_figures(found.artifacts["int8"].manifest, original)
    rows = [
        at_least("digits: full int8, times smaller", int8["size_ratio"], "times", 3.5),
        at_most("digits: full int8, accuracy drop", int8["quality_drop"], "", 0.01),
    ]
    if "channels_half" in found.artifacts:
        half = found.artifacts["channels_half"].manifest
        faster = found.faster("channels_half", "float32", 32)
        rows.append(at_least("digits: channels halved, faster at batch 32", faster, "times", 1.7))
        rows.append(at_most("digits: channels halved, accuracy drop", half.quality_drop, "", 0.02))
    for variant in ("sparse_weight", "sparse_gradient"):
        if variant in found.artifacts:
            value = found.artifacts[variant].manifest.quality["accuracy"]
            rows.append(Figure(f"digits: accuracy at 80% sparsity, {variant}", value, ""))
    return rows


def _flights(found: Measured) -> list[Figure]:
    if "rules" not in found.artifacts:
        return []
    rules = found.artifacts["rules"].manifest
    return [
        at_least("flights: rules, fidelity to the teacher", rules.fidelity, "", 0.95),
        at_most("flights: rules, how many", float(rules.interpretability["rules"]), "", 20),
    ]


def _minilm(found: Measured) -> list[Figure]:
    kept = [v for v, a in found.artifacts.items() if v != "float32" and a.manifest.quality_drop <= 0.01]
    if not kept:
        return [Figure("minilm: variants within 0.01 intent accuracy", 0.0, "", ">= 1", False)]
    rows = []
    for batch, bar in ((32, 5.0), (1, 6.5)):
        best = max(kept, key=lambda v: found.faster(v, "float32", batch))
        drop = found.artifacts[best].manifest.quality_drop
        detail = f"{best}, drop {drop:.4f}, against torch float32 padded to the longest row"
        times = found.faster(best, "float32", batch)
        rows.append(at_least(f"minilm: best at batch {batch}, faster", times, "times", bar, detail))
        # Grouping by length helps every network alike: this is what the network alone gained.
        plain = [v for v in kept if not found.artifacts[v].manifest.settings.get("group_call_tokens")]
        if plain:
            alike = max(plain, key=lambda v: found.faster(v, "float32", batch))
            times = found.faster(alike, "float32", batch)
            rows.append(Figure(f"minilm: at batch {batch}, padded alike", times, "times", detail=alike))
    return rows


def table(found: Measured) -> list[dict[str, Any]]:
    """A row per variant, for the file."""
    original = next(a.manifest for a in found.artifacts.values() if not a.manifest.recipe)
    return [
        {
            "variant": variant,
            "runtime": a.manifest.runtime,
            "quality": dict(a.manifest.quality),
            "fidelity": a.manifest.fidelity,
            "size_bytes": a.manifest.size_bytes,
            "size_ratio": original.size_bytes / a.manifest.size_bytes,
            "latency_ms": {str(n): found.medians[variant][n] for n in BATCHES},
            "speedup": {str(n): found.faster(variant, original.variant, n) for n in BATCHES},
            "tolerance": a.manifest.tolerance,
            "row_difference": found.row_differences[variant],
        }
        for variant, a in found.artifacts.items()
    ] + [{"variant": variant, "skipped": reason} for variant, reason in found.skipped.items()]


if __name__ == "__main__":
    main()
