"""Recipe + task -> artifacts: each variant's passes run, packed, measured, and set beside its goals.

Finished passes and finished variants are not repeated: :mod:`optimizers.pipeline.cache` keys passes by the
digest of their inputs, and an artifact whose manifest carries the key of this very run is kept.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from optimizers import artifact as artifacts
from optimizers.artifact import Artifact, ArtifactError, Manifest
from optimizers.formats.errors import NotAvailable, PassError, RecipeError, typed
from optimizers.formats.in_memory import predictor
from optimizers.passes.registry import apply
from optimizers.pipeline import measure, provenance
from optimizers.pipeline.cache import PassCache, next_key, start_key
from optimizers.pipeline.goals import GoalResult, figures, judge
from optimizers.pipeline.packaging import pack
from optimizers.pipeline.recipe import Recipe, Variant
from optimizers.pipeline.report import write
from optimizers.pipeline.result import PipelineResult
from optimizers.pipeline.task_loading import check_task, load_task
from optimizers.profile import LatencyProfile, ProfilePoint
from optimizers.runner import RunnerError, load
from optimizers.runtimes import example_row, machine
from optimizers.task import Dataset, PassContext, Predict, Task, TaskModel
from optimizers.tensors import Tensors

#: Gets the variant's name (empty: the whole run) and what is being done.
Progress = Callable[[str, str], None]

#: Among so many rows of the test data the artifact's example row is chosen.
_EXAMPLE_ROWS = 256

#: Notes of passes that have a member of their own in the manifest.
_OWN_MEMBERS = ("parameters", "sparsity", "interpretability")


def run(
    recipe: Recipe,
    out: Path,
    *,
    only: Sequence[str] | None = None,
    task: Task | None = None,
    report: bool = True,
    progress: Progress | None = None,
) -> PipelineResult:
    """Make the recipe's variants (or ``only`` some, and the original) under ``out``.

    Raises :class:`RecipeError` and :class:`optimizers.formats.errors.PassError`; a variant that needs what
    is not on this machine is skipped with its reason.
    """
    say: Progress = progress or (lambda variant, message: None)
    unknown = sorted(set(only or ()) - {v.name for v in recipe.variants})
    if unknown:
        raise RecipeError(f"no variant {unknown[0]!r}; the recipe has {[v.name for v in recipe.variants]}")
    cache_folder = out / ".cache"
    if task is None:
        say("", f"preparing {recipe.name}")
        task = load_task(recipe.task, cache_folder, lambda message: say("", message), recipe.data)
    check_task(task)
    maker = _Maker(recipe, task, out, PassCache(cache_folder / "passes"), say)
    made: dict[str, Artifact] = {}
    skipped: dict[str, str] = {}
    ordered = [recipe.original, *(v for v in recipe.variants if v is not recipe.original)]
    for variant in ordered:
        if only is not None and variant.name not in only and variant is not recipe.original:
            continue
        try:
            with typed("it cannot be made and measured"):
                made[variant.name] = maker.make(variant, made.get(recipe.original.name))
        except (NotAvailable, RunnerError) as error:
            if variant is recipe.original:
                raise
            skipped[variant.name] = str(error)
            say(variant.name, f"skipped: {error}")
        except PassError as error:
            raise type(error)(f"variants.{variant.name}: {error}") from error
        except ArtifactError as error:
            raise PassError(f"variants.{variant.name}: its runtime does not take it: {error}") from error
    result = PipelineResult(recipe, made, skipped, _judge_all(recipe, made))
    if report:
        write(result, out)
    return result


def _judge_all(recipe: Recipe, made: Mapping[str, Artifact]) -> dict[str, tuple[GoalResult, ...]]:
    original = made[recipe.original.name].manifest
    return {
        v.name: judge((*recipe.goals, *v.goals), figures(made[v.name].manifest, original))
        for v in recipe.variants
        if v.name in made and v is not recipe.original
    }


class _Maker:
    """Makes one variant after another of one task."""

    def __init__(self, recipe: Recipe, task: Task, out: Path, cache: PassCache, say: Progress) -> None:
        self._recipe, self._task, self._out = recipe, task, out
        self._cache, self._say = cache, say
        self._code = provenance.task_digest(recipe.task.partition(":")[0])
        self._teacher: Predict | None = None
        self._original_outputs: dict[int, Tensors] = {}

    def make(self, variant: Variant, original: Artifact | None) -> Artifact:
        """The variant's artifact: the one on disk if it is of this very run, or a new one."""
        key = self._key(variant, original)
        kept = self._finished(variant, key)
        if kept:
            self._say(variant.name, "already made")
            return kept
        tried: list[dict[str, Any]] = []
        if variant.search:
            assert original is not None  # the original has no passes, so it cannot have a search
            from optimizers.pipeline.search import choose

            variant, tried = choose(variant, self._recipe, self._trial, original.manifest, self._say)
        model = self._passes(variant)
        return self._finish(variant, model, key, original, tried)

    def _key(self, variant: Variant, original: Artifact | None) -> str:
        against = original.manifest.lineage["key"] if original else ""
        settings = [
            [spec.to_json() for spec in variant.passes],
            variant.runtime,
            variant.threads,
            variant.device,
            variant.compile,
            repr(variant.search),
            repr(self._recipe.goals if variant.search else ()),
            self._recipe.latency.batches,
            self._recipe.latency.seconds,
            against,
            machine.describe(),
        ]
        key = self._start("")
        for spec in variant.passes:
            key = next_key(key, spec)
        return hashlib.sha256(orjson.dumps([key, settings])).hexdigest()

    def _start(self, runtime: str) -> str:
        return start_key(self._task, self._recipe.seed, runtime, self._code)

    def _finished(self, variant: Variant, key: str) -> Artifact | None:
        try:
            found = artifacts.read(self._out / variant.name)
        except ArtifactError:
            return None
        return found if found.manifest.lineage.get("key") == key else None

    def _passes(self, variant: Variant) -> TaskModel:
        # The runtime counts: a pass may work differently for another one.
        model, key = self._task.model, self._start(variant.runtime)
        for i, spec in enumerate(variant.passes, 1):
            key = next_key(key, spec)
            step = f"{spec.kind} ({i}/{len(variant.passes)})"
            stored = self._cache.get(key, self._task)
            if stored is not None:
                self._say(variant.name, f"{step}: already done")
                model = stored
                continue
            self._say(variant.name, step)
            model = self._apply(variant, model, spec)
            self._cache.put(key, model, self._task)
        return model

    def _apply(self, variant: Variant, model: TaskModel, spec: Any) -> TaskModel:
        context = PassContext(
            task=self._task,
            teacher=self._teach,
            seed=self._recipe.seed,
            runtime=variant.runtime,
            progress=lambda message: self._say(variant.name, message),
        )
        try:
            with typed("it failed"):
                return apply(model, spec, context)
        except PassError as error:
            raise type(error)(f"{spec.kind}: {error}") from error

    def _teach(self, inputs: Tensors) -> Tensors:
        if self._teacher is None:
            self._teacher = predictor(self._task.model, self._task)
        return self._teacher(inputs)

    def _trial(self, variant: Variant, original: Manifest, seconds: float) -> Manifest:
        """A candidate of a search, packed to a temporary folder and judged on validation rows."""
        model = self._passes(variant)
        with tempfile.TemporaryDirectory() as folder:
            draft = self._draft(variant, model, Path(folder))
            before = artifacts.read(self._out / original.variant, verify=False)
            base = self._evaluate(before, self._task.validation)
            return self._measured(draft, self._task.validation, base, seconds).manifest

    def _draft(self, variant: Variant, model: TaskModel, folder: Path) -> Artifact:
        """The packed variant with what is known before it is measured."""
        task = self._task
        packed = pack(model, variant, task)
        files: dict[str, bytes | Path] = dict(packed.files)
        if task.preprocess:
            files.update(task.preprocess.files)
        files[example_row.FILE] = example_row.encode(task.test.take(_EXAMPLE_ROWS).inputs, task.inputs)
        parameters, sparsity = measure.count_parameters(model)
        names = [packed.settings["weights"], packed.settings.get("weights_data")]
        manifest = Manifest(
            model=self._recipe.name,
            variant=variant.name,
            runtime=packed.runtime,
            inputs=task.inputs,
            outputs=model.outputs,
            metric=task.metric.name,
            quality={task.metric.name: 0.0, "quality_drop": 0.0},
            profile=LatencyProfile((ProfilePoint(1, 1.0, 1.0),)),
            size_bytes=sum(len(packed.files[str(n)]) for n in names if n),
            parameters=parameters,
            sparsity=sparsity,
            recipe=tuple(spec.to_json() for spec in variant.passes),
            interpretability=dict(model.notes.get("interpretability", {"kind": "none"})),
            machine=machine.describe(),
            settings={**packed.settings, "threads": variant.threads, "device": variant.device},
            preprocess=dict(task.preprocess.settings) if task.preprocess else {},
        )
        return artifacts.write(folder, manifest, files)

    def _evaluate(self, artifact: Artifact, data: Dataset) -> float:
        runner = load(artifact)
        try:
            return self._task.metric.evaluate(runner.run, data)
        finally:
            runner.close()

    def _measured(self, draft: Artifact, data: Dataset, base: float | None, seconds: float) -> Artifact:
        """The draft with quality, fidelity, tolerance and latency filled in (on disk: not yet)."""
        task, manifest = self._task, draft.manifest
        runner = load(draft)
        try:
            example_row.try_out(runner, example_row.example_of(draft))
            value = task.metric.evaluate(runner.run, data)
            fidelity = task.fidelity(measure.outputs(runner, data), self._reference(data))
            tolerance = measure.row_tolerance(runner, data)
            profile = measure.latency(runner, data, self._recipe.latency.batches, seconds)
        finally:
            runner.close()
        drop = 0.0 if base is None else base - value
        return replace(
            draft,
            manifest=replace(
                manifest,
                quality={task.metric.name: value, "quality_drop": drop},
                fidelity=fidelity,
                tolerance=tolerance,
                profile=profile,
            ),
        )

    def _reference(self, data: Dataset) -> Tensors:
        """The original's outputs for a data set, in memory: what fidelity compares with."""
        known = self._original_outputs.get(id(data))
        if known is None:
            parts = [self._teach(self._task.network_inputs(p.inputs)) for p in data.batches(128)]
            known = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
            self._original_outputs[id(data)] = known
        return known

    def _finish(
        self,
        variant: Variant,
        model: TaskModel,
        key: str,
        original: Artifact | None,
        tried: list[dict[str, Any]],
    ) -> Artifact:
        self._say(variant.name, "measuring")
        with tempfile.TemporaryDirectory() as folder:
            draft = self._draft(variant, model, Path(folder))
            base = original.manifest.quality[self._task.metric.name] if original else None
            done = self._measured(draft, self._task.test, base, self._recipe.latency.seconds)
            lineage = {
                "key": key,
                "task": self._recipe.task,
                "task_digest": self._task.digest,
                "original": original.manifest.variant if original else variant.name,
                "seed": str(self._recipe.seed),
            }
            notes = {k: v for k, v in model.notes.items() if k not in _OWN_MEMBERS}
            if tried:
                notes["search"] = tried
            notes["example"] = measure.example(self._task.test)
            manifest = replace(done.manifest, lineage=lineage, notes=notes)
            files = {name: draft.path / name for name in draft.manifest.files}
            return artifacts.write(self._out, manifest, files)
