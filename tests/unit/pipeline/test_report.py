"""Goals, Pareto front, chart and report: figures are set beside goals and told in plain words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import orjson
import pytest

from optimizers.artifact import Artifact, Manifest
from optimizers.formats.errors import RecipeError
from optimizers.passes.quantize_static import QuantizeStatic
from optimizers.pipeline import report
from optimizers.pipeline.chart import scatter
from optimizers.pipeline.goals import figures, judge
from optimizers.pipeline.pareto import front
from optimizers.pipeline.recipe import Goal, Recipe, Variant
from optimizers.pipeline.result import PipelineResult
from optimizers.profile import fit
from optimizers.tensors import TensorSpec

ORIGINAL = Manifest(
    model="m",
    variant="float32",
    runtime="onnx",
    inputs=(TensorSpec("x", "FP32", (-1, 2)),),
    outputs=(TensorSpec("label", "INT64", (-1,)),),
    metric="accuracy",
    quality={"accuracy": 0.9, "quality_drop": 0.0},
    profile=fit({1: [2.0], 8: [8.0]}),
    size_bytes=4096,
    parameters=1000,
    machine={"cpu": "c", "cores": 2, "memory_gib": 4, "system": "s"},
    interpretability={"kind": "none"},
)
TREE = replace(
    ORIGINAL,
    variant="<tree>",
    runtime="trees",
    quality={"accuracy": 0.8, "quality_drop": 0.1},
    fidelity=0.85,
    profile=fit({1: [0.5], 8: [1.0]}),
    size_bytes=1024,
    interpretability={"kind": "tree", "leaves": 5, "text": "tree.txt"},
)


def test_figures_compare_with_the_original() -> None:
    found = figures(TREE, ORIGINAL)
    assert found["size_ratio"] == 4.0
    assert found["speedup_1"] == 4.0 and found["speedup_8"] == 8.0
    assert found["quality_drop"] == 0.1 and found["leaves"] == 5.0


def test_goals_are_judged_and_an_unknown_figure_is_refused() -> None:
    (met, missed) = judge(
        (Goal("speedup_8", at_least=8), Goal("accuracy", at_least=0.9)), figures(TREE, ORIGINAL)
    )
    assert met.holds and not missed.holds and missed.value == 0.8
    with pytest.raises(RecipeError, match=r"speedup_9.*speedup_8"):
        judge((Goal("speedup_9", at_least=1),), figures(TREE, ORIGINAL))


def test_the_front_holds_what_no_other_beats() -> None:
    points = {
        "a": (0.9, 10.0),
        "b": (0.8, 5.0),
        "worse": (0.8, 6.0),
        "equal": (0.8, 5.0),
        "best": (0.95, 30.0),
    }
    assert front(points) == ["b", "a", "best"]


def test_one_variant_is_its_own_front() -> None:
    assert front({"only": (0.0, 1.0)}) == ["only"]


def test_the_chart_is_well_formed_and_escapes_names() -> None:
    points = {"<a>": (0.9, 10.0), "b&c": (0.9, 10.0)}
    root = ElementTree.fromstring(scatter(points, ["<a>"], title="t", cost="ms", quality="q"))
    labels = [element for element in root.iter() if element.text in points]
    assert {element.text for element in labels} == {"<a>", "b&c"}
    assert len({e.get("y") for e in labels}) == 2  # two names at one point do not cover each other


@pytest.fixture
def result(tmp_path: Path) -> PipelineResult:
    goal = Goal("speedup_8", at_least=100)
    recipe = Recipe("m", "a:b", (Variant("float32"), Variant("<tree>", (QuantizeStatic(),), goals=(goal,))))
    made = {m.variant: Artifact(tmp_path / "x", m) for m in (ORIGINAL, TREE)}
    goals = {"<tree>": judge((goal,), figures(TREE, ORIGINAL))}
    return PipelineResult(recipe, made, {"engine": "TensorRT is not available here"}, goals)


def test_a_missed_goal_shows_in_the_result(result: PipelineResult) -> None:
    assert not result.met


def test_the_report_has_rows_fronts_goals_and_answers(result: PipelineResult, tmp_path: Path) -> None:
    data, page = report.write(result, tmp_path)
    summary = orjson.loads(data.read_bytes())
    assert [v["name"] for v in summary["variants"]] == ["float32", "<tree>"]
    assert summary["front"]["size"] == ["<tree>", "float32"]
    assert summary["variants"][1]["goals"] == [
        {"goal": "speedup_8 at least 100", "value": 8.0, "holds": False}
    ]
    assert "0.1000 lower" in summary["answers"]["quality"][0]
    assert "cannot be read" in summary["answers"]["interpretability"][0]
    assert "leaves 5" in summary["answers"]["interpretability"][1]
    html = page.read_text()
    assert "&lt;tree&gt;" in html and "<tree>" not in html
    assert "TensorRT is not available here" in html and html.count("<svg") == 2
