"""Runtimes and techniques of other packages, found by the entry points of what is installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from optimizers import runner
from optimizers.artifact import read
from optimizers.formats.errors import RecipeError
from optimizers.pipeline import pipeline, recipe_file
from optimizers.runner import RuntimeUnknown
from tests.support.small_task import small_task

PACKAGE = '''
"""A runtime that scales what ONNX Runtime answers, and a technique that scales a network's weights."""

import copy
from dataclasses import dataclass
from typing import ClassVar

from optimizers.passes.technique import PassSpec, Technique, within
from optimizers.runtimes import onnx

FORM = "onnx"


@dataclass(frozen=True)
class Scale(PassSpec):
    kind: ClassVar[str] = "scale"
    factor: float = 1.0

    def __post_init__(self):
        within(self, "factor", 0, 10)


def scale(model, spec, context):
    module = copy.deepcopy(model.value)
    for parameter in module.parameters():
        parameter.data.mul_(spec.factor)
    return model.becomes(module, scaled_by=spec.factor)


TECHNIQUE = Technique(Scale, ("torch",), scale)


def open_runner(artifact, *, threads, device):
    return onnx.open_runner(artifact, threads=threads, device=device)
'''
RECIPE = """\
name: small
task: a:task
latency: {batches: [1, 2], seconds: 0.01}
variants:
  float32: {}
  scaled:
    runtime: mirror
    passes:
      - scale: {factor: 2}
"""

Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution ``extra-parts`` with one module and its entry points where Python looks."""
    folder = tmp_path / "installed"
    information = folder / "extra_parts-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: extra-parts\nVersion: 1.0\n")

    def put(entry_points: str, module: str) -> None:
        (information / "entry_points.txt").write_text(dedent(entry_points))
        (folder / "extra_parts.py").write_text(module)
        importlib.invalidate_caches()

    monkeypatch.syspath_prepend(str(folder))
    yield put
    sys.modules.pop("extra_parts", None)


def points(runtime: str = "extra_parts", technique: str = "extra_parts:TECHNIQUE") -> str:
    return f"""\
        [hybrid_router.runtimes]
        mirror = {runtime}

        [hybrid_router.passes]
        scale = {technique}
        """


def test_a_recipe_uses_a_runtime_and_a_technique_of_another_package(install: Install, tmp_path: Path) -> None:
    install(points(), PACKAGE)
    recipe = recipe_file.parse(RECIPE)
    task = small_task()
    result = pipeline.run(recipe, tmp_path / "out", task=task, report=False)
    manifest = result.artifacts["scaled"].manifest
    assert (manifest.runtime, manifest.notes["scaled_by"]) == ("mirror", 2.0)
    assert manifest.recipe == ({"scale": {"factor": 2.0}},)
    loaded = runner.load(read(tmp_path / "out" / "scaled"))
    rows = task.test.take(3).inputs
    again = runner.load(read(tmp_path / "out" / "float32"))
    scaled, plain = loaded.run(rows)["scores"], again.run(rows)["scores"]
    assert scaled.shape == plain.shape and not np.allclose(scaled, plain)


def test_settings_of_another_packages_technique_are_checked_with_line_and_key(install: Install) -> None:
    install(points(), PACKAGE)
    with pytest.raises(RecipeError, match=r"recipe:9: variants\.scaled\.passes\.0\.scale\.factr: .*'factor'"):
        recipe_file.parse(RECIPE.replace("factor", "factr"))
    with pytest.raises(RecipeError, match=r"passes\.0\.scael: unknown pass; did you mean 'scale'"):
        recipe_file.parse(RECIPE.replace("scale:", "scael:"))


@pytest.mark.parametrize(
    ("technique", "says"),
    [
        ("extra_parts:MISSING", "'scale' of extra-parts cannot be loaded from 'extra_parts:MISSING'"),
        ("no_such_module:TECHNIQUE", "cannot be loaded .*No module named 'no_such_module'"),
        ("extra_parts:FORM", "must name a Technique whose spec has kind = 'scale'"),
    ],
)
def test_a_technique_that_cannot_be_loaded_is_one_sentence(
    install: Install, technique: str, says: str
) -> None:
    install(points(technique=technique), PACKAGE)
    with pytest.raises(RecipeError, match=says) as caught:
        recipe_file.parse(RECIPE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "module", "says"),
    [
        ("extra_parts", "1 / 0", "mirror.*extra-parts.*ZeroDivisionError: division by zero"),
        ("extra_parts", "", r"mirror.*no open_runner\(artifact"),
        ("extra_parts.inner", "", "mirror.*cannot be loaded"),
    ],
)
def test_a_runtime_that_cannot_be_loaded_is_one_sentence(
    install: Install, entry: str, module: str, says: str
) -> None:
    install(points(runtime=entry), module)
    with pytest.raises(RuntimeUnknown, match=says) as caught:
        runner.runtime_module("mirror")
    assert "\n" not in str(caught.value)


def test_an_unknown_runtime_is_refused_with_all_that_there_are(install: Install) -> None:
    install(points(), PACKAGE)
    with pytest.raises(RecipeError, match=r"variants\.scaled\.runtime: 'mirrr' is not one of onnx, .*mirror"):
        recipe_file.parse(RECIPE.replace("runtime: mirror", "runtime: mirrr"))
