"""The pipeline: finished work is kept, interrupted work resumes, what cannot be made is skipped."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from pathlib import Path

import orjson
import pytest
import torch
from torch import nn

from optimizers import artifact
from optimizers.formats.errors import PassError, RecipeError
from optimizers.passes.distill_tree import DistillTree
from optimizers.passes.fine_tune import FineTune
from optimizers.passes.quantize_static import QuantizeStatic
from optimizers.pipeline import pipeline, provenance
from optimizers.pipeline.cache import PassCache, next_key, start_key
from optimizers.pipeline.recipe import Goal, Latency, Recipe, Search, Variant
from optimizers.pipeline.task_loading import resolve_task
from optimizers.runtimes import example_row, machine
from optimizers.task import Metric, TaskModel
from optimizers.tensors import TensorSpec
from tests.support.small_task import small_task

INT8 = Variant("int8", (FineTune(epochs=1), QuantizeStatic(rows=64)))
RECIPE = Recipe(
    "quarters",
    "none:none",
    (Variant("float32"), INT8, Variant("engine", runtime="tensorrt")),
    goals=(Goal("quality_drop", at_most=0.1),),
    latency=Latency((1, 4), 0.02),
)


def _run(recipe: Recipe, out: Path, **options: object) -> tuple[pipeline.Result, list[str]]:
    said: list[str] = []
    result = pipeline.run(
        recipe,
        out,
        task=small_task(),
        progress=lambda variant, message: said.append(f"{variant}: {message}"),
        **options,  # type: ignore[arg-type]
    )
    return result, said


def test_a_run_makes_artifacts_a_report_and_skips_what_is_not_available(tmp_path: Path) -> None:
    result, _ = _run(RECIPE, tmp_path)
    found = artifact.read_all(tmp_path)
    assert set(found) == {"float32", "int8"} == set(result.artifacts)
    assert "not available here" in result.skipped["engine"]
    manifest = found["int8"].manifest
    assert manifest.quality["accuracy"] > 0.5 and manifest.size_bytes < found["float32"].manifest.size_bytes
    assert [list(step) for step in manifest.recipe] == [["fine_tune"], ["quantize_static"]]
    assert manifest.lineage["original"] == "float32" and manifest.machine["cores"] >= 1
    assert result.met and len(result.goals["int8"]) == 1
    (example,) = manifest.notes["example"].values()
    assert example["shape"][0] == 1 and any(value > 0 for value in example["data"])
    for made in found.values():
        kept = example_row.example_of(made)
        assert kept.is_real
        assert (kept.row["image"] == small_task().test.inputs["image"][:1]).all()
    assert orjson.loads((tmp_path / "report.json").read_bytes())["skipped"] == dict(result.skipped)

    again, said = _run(RECIPE, tmp_path)
    assert "int8: already made" in said and not any("quantize_static" in line for line in said)
    assert again.artifacts["int8"].manifest == manifest


def test_a_run_that_stopped_after_a_pass_resumes_behind_it(tmp_path: Path) -> None:
    with pytest.raises(PassError, match="no layer is named"):
        broken = replace(INT8, passes=(INT8.passes[0], QuantizeStatic(rows=64, exclude=("nothing",))))
        _run(replace(RECIPE, variants=(RECIPE.variants[0], broken)), tmp_path, report=False)
    _, said = _run(RECIPE, tmp_path, report=False)
    assert "float32: already made" in said
    assert "int8: fine_tune (1/2): already done" in said and "int8: quantize_static (2/2)" in said


def test_a_damaged_cache_entry_is_made_again(tmp_path: Path) -> None:
    task, cache = small_task(), PassCache(tmp_path)
    key = next_key(start_key(task, 0), FineTune())
    cache.put(key, task.model, task)
    assert cache.get(key, task) is not None
    weights = tmp_path / key / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert cache.get(key, task) is None
    assert cache.get("unknown", task) is None


def test_keys_tell_spec_seed_task_and_runtime_apart() -> None:
    task = small_task()
    keys = {
        start_key(task, 0),
        start_key(task, 1),
        start_key(task, 0, "torch"),
        start_key(replace(task, digest="other"), 0),
        next_key(start_key(task, 0), FineTune()),
        next_key(start_key(task, 0), FineTune(epochs=9)),
        next_key(start_key(task, 0), DistillTree()),
    }
    assert len(keys) == 7


def test_only_some_variants_and_the_original_are_made(tmp_path: Path) -> None:
    recipe = replace(RECIPE, variants=(*RECIPE.variants, Variant("tree", (DistillTree(resampled=0),))))
    result, _ = _run(recipe, tmp_path, only=["tree"], report=False)
    assert set(result.artifacts) == {"float32", "tree"}
    with pytest.raises(RecipeError, match="no variant 'trie'"):
        _run(recipe, tmp_path, only=["trie"])


def test_a_search_keeps_the_first_candidate_that_meets_the_goals(tmp_path: Path) -> None:
    searched = Variant(
        "tree",
        (DistillTree(resampled=0),),
        goals=(Goal("leaves", at_most=6),),
        search=Search(0, {"max_leaves": (20, 6, 2)}, tries=3),
    )
    recipe = replace(RECIPE, variants=(Variant("float32"), searched), goals=())
    result, said = _run(recipe, tmp_path, report=False)
    manifest = result.artifacts["tree"].manifest
    assert manifest.recipe[0]["distill_tree"]["max_leaves"] == 6
    assert [t["max_leaves"] for t in manifest.notes["search"]] == [20, 6]
    assert "tree: trying max_leaves=20" in said and result.met


def test_a_search_that_meets_no_goal_keeps_the_nearest_within_its_tries(tmp_path: Path) -> None:
    searched = Variant(
        "tree",
        (DistillTree(resampled=0),),
        goals=(Goal("leaves", at_least=1000),),
        search=Search(0, {"max_leaves": (4, 8, 16)}, tries=2),
    )
    recipe = replace(RECIPE, variants=(Variant("float32"), searched), goals=())
    result, _ = _run(recipe, tmp_path, report=False)
    assert result.artifacts["tree"].manifest.recipe[0]["distill_tree"]["max_leaves"] == 8
    assert not result.met


def test_a_task_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(RecipeError, match="nowhere"):
        resolve_task("nowhere:task")


@pytest.mark.parametrize("what", ["library", "processor", "machine", "source", "task"])
def test_nothing_made_by_other_code_libraries_or_machines_is_kept(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, variants=(Variant("float32"), Variant("int8", (QuantizeStatic(rows=64),))))
    _run(recipe, tmp_path, report=False)
    _, said = _run(recipe, tmp_path, report=False)
    assert said == ["float32: already made", "int8: already made"]
    if what == "library":
        monkeypatch.setattr(metadata, "version", lambda name: "another")
    elif what == "processor":
        monkeypatch.setattr(machine, "features", lambda: ["avx2"])
    elif what == "machine":
        monkeypatch.setattr(machine, "_cpu", lambda: "Another CPU with the same instructions")
    elif what == "task":
        monkeypatch.setattr(provenance, "task_digest", lambda module: f"another {module}")
    else:
        monkeypatch.setattr(provenance, "_package", lambda folder: {"quantize.py": "another"})
    _, said = _run(recipe, tmp_path, report=False)
    assert {"float32: measuring", "int8: measuring"} <= set(said)
    again = (
        "int8: quantize_static (1/1)" if what != "machine" else "int8: quantize_static (1/1): already done"
    )
    assert again in said


def test_a_model_whose_output_rows_are_not_its_inputs_rows_is_not_made(tmp_path: Path) -> None:
    class Pooled(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.flatten(1).mean(0, keepdim=True)

    task, outputs = small_task(), (TensorSpec("mean", "FP32", (-1, 64)),)
    model = TaskModel("torch", Pooled().eval(), task.model.inputs, outputs)
    pooled = replace(task, model=model, metric=Metric("one", lambda predict, data: 1.0), digest="pooled")
    with pytest.raises(example_row.RowsNotKept, match=r"output 'mean' has shape .* one row for each"):
        pipeline.run(Recipe("pooled", "none:none", (Variant("float32"),)), tmp_path, task=pooled)


def test_finished_passes_of_other_code_are_cleared_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, cache = small_task(), PassCache(tmp_path)
    key = next_key(start_key(task, 0), FineTune())
    cache.put(key, task.model, task)
    assert PassCache(tmp_path).get(key, task) is not None
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "meta.json").write_bytes(b"{")
    monkeypatch.setattr(metadata, "version", lambda name: "another")
    PassCache(tmp_path)
    assert not list(tmp_path.iterdir())
