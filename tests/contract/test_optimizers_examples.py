"""The examples end to end, and the command that runs a recipe, on real data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

from optimizers import artifact, runner
from optimizers.examples import digits, minilm
from optimizers.examples.common import recipe_path
from optimizers.formats.convert import torch_to_onnx
from optimizers.formats.errors import RecipeError
from optimizers.passes.quantize_dynamic import QuantizeDynamic
from optimizers.pipeline import pipeline, recipe_file
from optimizers.pipeline.cli import optimize
from optimizers.pipeline.recipe import Latency, Recipe, Variant
from optimizers.task import Dataset, Task
from tests.support.small_task import small_task

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(artifacts: Path) -> dict[str, artifact.Artifact]:
    return digits.build(artifacts)


def test_digits_keep_their_promises(built: dict[str, artifact.Artifact]) -> None:
    assert set(built) == set(digits.DEMO_VARIANTS)
    original, int8, tree = (built[n].manifest for n in ("float32", "int8", "tree"))
    assert original.quality["accuracy"] >= 0.98
    assert int8.quality_drop <= 0.01 and original.size_bytes / int8.size_bytes >= 3.5
    assert tree.quality["accuracy"] >= 0.85 and tree.fidelity >= 0.85
    assert tree.interpretability["kind"] == "tree"


def test_the_test_images_are_the_ones_that_were_judged(built: dict[str, artifact.Artifact]) -> None:
    images, labels = digits.test_split()
    assert images.shape == (360, 1, 8, 8) and images.dtype == np.float32
    assert images.min() == 0.0 and images.max() == 1.0
    for found in built.values():
        opened = runner.load(found)
        right = float(np.mean(opened.run({"image": images})["label"] == labels))
        opened.close()
        assert right == pytest.approx(found.manifest.quality["accuracy"])


def test_training_and_test_images_do_not_overlap() -> None:
    train, validation, test = digits.splits()
    assert (len(train), len(validation), len(test)) == (1257, 180, 360)
    seen = {row.tobytes() for part in (train, validation) for row in part.inputs["image"]}
    assert not any(row.tobytes() in seen for row in test.inputs["image"])


def test_building_again_makes_nothing_anew(built: dict[str, artifact.Artifact]) -> None:
    said: list[str] = []
    folder = next(iter(built.values())).path.parent
    again = digits.build(folder, progress=lambda variant, message: said.append(f"{variant} {message}"))
    assert {n: a.manifest for n, a in again.items()} == {n: a.manifest for n, a in built.items()}
    assert [line for line in said if "already made" in line] == [f"{n} already made" for n in built]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task of files alone: an ONNX model and three data sets."""
    task = small_task()
    folder = tmp_path_factory.mktemp("files")
    (folder / "model.onnx").write_bytes(torch_to_onnx(task.model, task).value.SerializeToString())
    for name, data in (("train", task.train), ("validation", task.validation), ("test", task.test)):
        assert data.targets is not None
        np.savez(folder / f"{name}.npz", target=data.targets, **data.inputs)
    (folder / "recipe.yaml").write_text(
        "name: files\ntask: optimizers.formats.onnx:task\nlatency: {batches: [1, 4], seconds: 0.02}\n"
        "goals: [{figure: quality_drop, at_most: -1}]\n"
        "variants:\n  float32: {}\n  int8:\n    passes: [{quantize_static: {rows: 64}}]\n"
    )
    return folder


def test_the_command_makes_variants_of_files_and_reports(files: Path, tmp_path: Path) -> None:
    arguments = [str(files / "recipe.yaml"), "--out", str(tmp_path), "--data", str(files)]
    done = CliRunner().invoke(optimize, arguments)
    assert done.exit_code == 0, done.output
    assert "missed: quality_drop at most -1" in done.output and "int8: quantize_static" in done.output
    assert set(artifact.read_all(tmp_path)) == {"float32", "int8"}
    assert orjson.loads((tmp_path / "report.json").read_bytes())["recipe"] == "files"
    strict = CliRunner().invoke(optimize, [*arguments, "--strict", "--quiet"])
    assert strict.exit_code == 1 and "quantize_static" not in strict.output


def test_the_command_explains_what_is_wrong(files: Path, tmp_path: Path) -> None:
    def output(*arguments: object) -> str:
        done = CliRunner().invoke(optimize, [*map(str, arguments), "--out", str(tmp_path / "out")])
        assert done.exit_code == 1 and done.exception is not None
        assert isinstance(done.exception, SystemExit)  # a message, not a traceback
        return done.output

    assert "cannot read the recipe file" in output(tmp_path / "none.yaml")
    assert "needs data" in output(files / "recipe.yaml")
    np.savez(tmp_path / "train.npz", image=np.array([object()]), target=np.zeros(1))
    (tmp_path / "model.onnx").write_bytes((files / "model.onnx").read_bytes())
    assert "without pickled objects" in output(files / "recipe.yaml", "--data", tmp_path)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Path]:
    """The sentence encoder with its excerpt, cut to a few questions of three intents."""
    pytest.importorskip(minilm.PACKAGE)
    workdir = tmp_path_factory.mktemp("minilm")
    task = minilm.task(workdir)

    def few(data: Dataset) -> Dataset:
        assert data.targets is not None
        return data.select(np.flatnonzero(np.isin(data.targets, (3, 30, 60))))

    train = few(task.train)
    metric = replace(task.metric, evaluate=minilm.nearest_accuracy(train))
    return replace(task, train=train, test=few(task.test), validation=few(task.test), metric=metric), workdir


def test_sentences_go_in_as_text_and_come_out_as_vectors(sentences: tuple[Task, Path]) -> None:
    task, out = sentences
    variants = (Variant("float32"), Variant("int8", (QuantizeDynamic(ops=("MatMul",)),)))
    recipe = Recipe("minilm", "none:none", variants, latency=Latency((1, 4), 0.1))
    made = pipeline.run(recipe, out, task=task, report=False).artifacts
    for found in made.values():
        assert found.manifest.inputs == minilm.INPUTS and "tokenizer.json" in found.manifest.files
        assert found.manifest.quality["intent_accuracy"] > 0.9 and found.manifest.fidelity > 0.98
        opened = runner.load(artifact.read(found.path))
        texts = np.array(
            [b"My card has not arrived", b"\xff\xfe not text", b"", b"word " * 500], dtype=object
        )
        vectors = opened.run({"text": texts})["vector"]
        assert vectors.shape == (4, 384) and vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-3)
        alone = opened.run({"text": texts[:1]})["vector"]
        np.testing.assert_allclose(vectors[:1], alone, atol=max(found.manifest.tolerance, 0.05))
        opened.close()


def test_the_excerpt_has_every_intent_and_keeps_sets_apart() -> None:
    references, validation, test = minilm.splits(None)
    assert references.targets is not None and len(set(references.targets.tolist())) == 77
    known = set(references.inputs["text"])
    assert not known & set(test.inputs["text"]) and not known & set(validation.inputs["text"])


def test_question_files_of_another_form_are_refused(tmp_path: Path) -> None:
    (tmp_path / "banking77_train.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RecipeError, match="text and category"):
        minilm.splits(tmp_path)


def test_recipes_of_the_examples_are_found_by_name() -> None:
    assert recipe_file.read(recipe_path("digits")).task == "optimizers.examples.digits:task"
    with pytest.raises(RecipeError, match="digits, flights, minilm"):
        recipe_path("nothing")
