"""Recipes: read from YAML, every mistake refused with its place and its mend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from optimizers.formats.errors import RecipeError
from optimizers.passes import registry
from optimizers.passes.quantize_static import QuantizeStatic
from optimizers.pipeline.recipe import Goal
from optimizers.pipeline.recipe_file import parse, read

GOOD = """
name: digits
task: optimizers.examples.digits:task
goals: [{figure: quality_drop, at_most: 0.01}]
latency: {batches: [1, 8], seconds: 2}
variants:
  float32: {}
  int8:
    threads: 2
    passes:
      - quantize_static: {calibration: entropy, exclude: [conv*]}
    search: {step: 0, values: {percentile: [99, 99.9]}, tries: 2}
"""


def test_a_recipe_is_read_with_its_types() -> None:
    recipe = parse(GOOD)
    int8 = recipe.variants[1]
    assert recipe.original.name == "float32"
    assert int8.passes == (QuantizeStatic(calibration="entropy", exclude=("conv*",)),)
    assert int8.threads == 2 and int8.search is not None
    assert int8.search.values == {"percentile": (99, 99.9)}
    assert recipe.latency.seconds == 2.0 and isinstance(recipe.latency.seconds, float)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("name: digits", "nmae: digits", "did you mean 'name'"),
        ("name: digits", "name: a/b", "plain name"),
        ("task: optimizers.examples.digits:task", "task: digits", "module:function"),
        ("quantize_static", "quantise_static", r"passes\.0.*did you mean 'quantize_static'"),
        ("calibration: entropy", "calibration: kl", r"variants\.int8\.passes\.0.*'kl'.*'entropy'"),
        ("calibration: entropy", "calibraton: entropy", "did you mean 'calibration'"),
        ("calibration: entropy", "rows: many", "rows: Input should be a valid integer, got 'many'"),
        ("calibration: entropy", "rows: true", "Input should be a valid integer"),
        ("calibration: entropy", "rows: 0", "from 1 to"),
        ("calibration: entropy", "engine: openvino, calibration: entropy", "leave out calibration"),
        ("exclude: [conv*]", "exclude: conv", "valid array"),
        ("threads: 2", "threads: 0", "1 or more"),
        ("threads: 2", "runtime: tflite", "tflite.*onnx"),
        ("threads: 2", "device: tpu", "neither cpu nor cuda"),
        ("at_most: 0.01", "at_most: 0.01, at_least: 0", "either"),
        ("batches: [1, 8]", "batches: [8, 1]", "ascend"),
        ("seconds: 2", "seconds: -2", r"latency.*must be in"),
        ("step: 0", "step: 3", "is no pass"),
        ("tries: 2", "tries: 0", "from 1 to 1000"),
        ("name: digits", "name: digits\nseed: -1", "seed: must be 0 or more"),
        ("name: digits", "name: 2024-02-31", "not valid YAML"),
        ("  float32: {}\n", "", "without passes"),
    ],
)
def test_a_mistake_is_refused_with_its_place_and_mend(old: str, new: str, says: str) -> None:
    assert old in GOOD
    with pytest.raises(RecipeError, match=says):
        parse(GOOD.replace(old, new))


@pytest.mark.parametrize(
    "text", ["", "a: [", "[]", "name: x", "name: x\ntask: a:b\nvariants: {}", "[" * 5000]
)
def test_what_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        parse(text)


def test_a_file_is_named_in_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    with pytest.raises(RecipeError, match=r"r\.yaml: cannot read the recipe file"):
        read(path)
    path.write_text("name: 3")
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        read(path)


def test_a_byte_order_mark_is_no_part_of_a_recipe_and_another_encoding_is_said(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD, encoding="utf-8-sig")
    assert read(path) == parse(GOOD)
    for encoding, says in (("utf-16", "UTF-16"), ("latin-1", "line 3 is not UTF-8")):
        path.write_text(GOOD.replace("digits:task", "d\xfcgits:task"), encoding=encoding)
        with pytest.raises(RecipeError, match=rf"r\.yaml: cannot read .*{says}.*save it as UTF-8"):
            read(path)


def test_every_recipe_of_the_repository_is_valid() -> None:
    folder = Path(__file__).parents[3] / "configs" / "recipes"
    paths = sorted(folder.glob("*.yaml"))
    assert {"digits", "minilm"} <= {p.stem for p in paths}
    for path in paths:
        assert read(path).name == path.stem


def test_every_technique_is_found_by_its_name_and_is_the_file_of_that_name() -> None:
    folder = Path(registry.__file__).parent
    for kind in registry.BUILT_IN:
        technique = registry.technique(kind)
        assert technique.spec.kind == kind and callable(technique.apply) and technique.forms
        assert technique.spec.__module__ == f"optimizers.passes.{kind}"
    files = {
        path.stem for path in folder.glob("*.py") if "\nTECHNIQUE = " in path.read_text(encoding="utf-8")
    }
    assert files == set(registry.BUILT_IN)


def test_all_techniques_are_known_without_a_heavy_library() -> None:
    code = (
        "import sys; from optimizers.passes import registry as r; [r.technique(k) for k in r.kinds()];"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'openvino', 'nncf', 'sklearn'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_goals_compare_in_the_direction_they_say() -> None:
    assert Goal("x", at_most=0.01).holds(0.01) and not Goal("x", at_most=0.01).holds(0.011)
    assert Goal("x", at_least=2).holds(2) and not Goal("x", at_least=2).holds(1.9)
    assert not Goal("x", at_most=1).holds(float("nan"))
    assert Goal("x", at_least=2).shortfall(1) == pytest.approx(0.5)
    assert Goal("x", at_least=2).shortfall(3) == 0
