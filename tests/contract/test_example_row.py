"""A variant is warmed up and probed with a row that it takes; one that gives other rows is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from optimizers import artifact, runner
from optimizers.artifact import ArtifactMalformed
from optimizers.runtimes.example_row import FILE, ExampleFails, RowsNotKept, encode, example_of
from optimizers.tensors import Tensors, TensorSpec, pack, unpack
from tests.support import tiny_onnx
from workers.execution.batch_model import ArtifactModel, VariantUnavailable
from workers.execution.faults import ModelFault
from workers.execution.loaded_variant import LoadedVariant
from workers.execution.model_thread import run_jobs
from workers.online import BatchRunner

IMAGE = (TensorSpec("image", "FP32", (-1, 1, -1, -1)),)
WORD = (TensorSpec("word", "BYTES", (-1,)),)


def convolution(folder: Path, example: Tensors | None = None) -> Path:
    """A 3 x 3 convolution without padding: no image of 1 x 1."""
    weights = helper.make_tensor("weights", TensorProto.FLOAT, [1, 1, 3, 3], [1.0] * 9)
    node = helper.make_node("Conv", ["image", "weights"], ["sums"])
    outputs = (TensorSpec("sums", "FP32", (-1, 1, -1, -1)),)
    model = tiny_onnx.graph([node], IMAGE, outputs, [weights])
    return tiny_onnx.write(folder, model, IMAGE, outputs, example)


def encoder(folder: Path, example: Tensors | None = None) -> Path:
    """Two words by their numbers; any other has none."""
    labels = helper.make_node(
        "LabelEncoder",
        ["word"],
        ["index"],
        domain="ai.onnx.ml",
        keys_strings=["cat", "dog"],
        values_int64s=[0, 1],
        default_int64=99,
    )
    table = helper.make_tensor("table", TensorProto.FLOAT, [2], [0.5, 1.5])
    nodes = [labels, helper.make_node("Gather", ["table", "index"], ["value"])]
    outputs = (TensorSpec("value", "FP32", (-1,)),)
    model = tiny_onnx.graph(nodes, WORD, outputs, [table])
    return tiny_onnx.write(folder, model, WORD, outputs, example)


def first_token(folder: Path, example: Tensors | None = None) -> Path:
    """The number of a text's first word, of the two that it knows: an empty text has none."""
    place = helper.make_tensor("place", TensorProto.INT64, [], [0])
    five = helper.make_tensor("five", TensorProto.INT64, [], [5])
    table = helper.make_tensor("table", TensorProto.INT64, [2], [5, 6])
    nodes = [
        helper.make_node("Gather", ["input_ids", "place"], ["token"], axis=1),
        helper.make_node("Sub", ["token", "five"], ["index"]),
        helper.make_node("Gather", ["table", "index"], ["first"]),
    ]
    output = TensorSpec("first", "INT64", (-1,))
    return tiny_onnx.write_text(folder, nodes, output, [place, five, table], example)


CASES = {
    "an unpadded convolution": (
        convolution,
        {"image": np.ones((1, 1, 4, 5), np.float32)},
        [[[[9.0] * 3] * 2]],
    ),
    "an encoder that knows no empty word": (encoder, {"word": np.array([b"dog"], object)}, [1.5]),
    "a tokenizer that makes no token of nothing": (
        first_token,
        {"word": np.array([b"dog cat"], object)},
        [6],
    ),
}
each_case = pytest.mark.parametrize(("make", "row", "expected"), CASES.values(), ids=CASES.keys())


@each_case
@pytest.mark.parametrize("kept", [True, False], ids=["with its example row", "without one"])
async def test_a_model_that_takes_no_zeros_starts_and_answers(
    tmp_path: Path, make: object, row: Tensors, expected: object, kept: bool
) -> None:
    assert callable(make)
    folder = make(tmp_path, row if kept else None)
    replica = BatchRunner("tiny", str(folder), ["v"], 1)
    outputs, _ = unpack(await replica.run("v", pack(row, {"rows": [1]})))
    (values,) = outputs.values()
    assert values.tolist() == expected
    worker = ArtifactModel(str(folder), 1)
    worker.load("v")
    (answer,) = run_jobs(worker, "v", 8, [row])
    assert isinstance(answer, dict)
    replica.close()
    worker.close()


@each_case
async def test_a_bad_row_fails_alone_where_zeros_fail_as_well(
    tmp_path: Path, make: object, row: Tensors, expected: object
) -> None:
    assert callable(make)
    worker = ArtifactModel(str(make(tmp_path)), 1)
    worker.load("v")
    bad = {name: np.full((1, 1, 1, 1), 0, np.float32) for name in row}
    if "word" in row:
        bad = {"word": np.array([b""], object)}
    # Before anything has worked, and after.
    for _ in range(2):
        failed, good = run_jobs(worker, "v", 8, [bad, row])
        assert isinstance(failed, Exception)
        assert isinstance(good, dict)
    worker.close()


def test_once_a_row_has_worked_a_model_that_fails_on_it_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = ArtifactModel(str(encoder(tmp_path)), 1)
    worker.load("v")
    good = {"word": np.array([b"cat"], object)}
    run_jobs(worker, "v", 8, [good])

    def broken(batch: Tensors) -> Tensors:
        raise MemoryError("the device is gone")

    monkeypatch.setattr(worker._loaded["v"]._runner, "run", broken)
    with pytest.raises(ModelFault, match="the device is gone"):
        run_jobs(worker, "v", 8, [good])


def test_a_model_that_fails_on_the_row_of_its_own_artifact_is_not_loaded(tmp_path: Path) -> None:
    encoder(tmp_path, {"word": np.array([b"bird"], object)})
    with pytest.raises(ExampleFails, match="v: it fails on its own example row"):
        LoadedVariant(str(tmp_path / "v"), 1)


def test_an_example_that_is_not_one_row_of_the_inputs_is_refused(tmp_path: Path) -> None:
    first_token(tmp_path)
    manifest = artifact.read(tmp_path / "v").manifest
    two = pack({"word": np.array([b"cat", b"dog"], object)})
    kept: dict[str, bytes | Path] = {name: (tmp_path / "v" / name).read_bytes() for name in manifest.files}
    artifact.write(tmp_path, manifest, {**kept, FILE: two})
    with pytest.raises(
        ArtifactMalformed, match=r"example.tensors: not one row of the model's inputs: it has 2"
    ):
        example_of(artifact.read(tmp_path / "v"))


def above_half(folder: Path, example: Tensors | None = None) -> Path:
    """The values above one half, in as many rows as there are, like boxes after non-maximum suppression."""
    inputs, outputs = (TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("boxes", "FP32", (-1,)),)
    half = helper.make_tensor("half", TensorProto.FLOAT, [], [0.5])
    nodes = [
        helper.make_node("Greater", ["x", "half"], ["chosen"]),
        helper.make_node("Compress", ["x", "chosen_flat"], ["boxes"]),
    ]
    shape = helper.make_tensor("flat", TensorProto.INT64, [1], [-1])
    nodes.insert(1, helper.make_node("Reshape", ["chosen", "flat"], ["chosen_flat"]))
    model = tiny_onnx.graph(nodes, inputs, outputs, [half, shape])
    return tiny_onnx.write(folder, model, inputs, outputs, example)


@pytest.mark.parametrize("example", [{"x": np.ones((1, 4), np.float32)}, None], ids=["example", "zeros"])
def test_a_model_whose_output_rows_are_not_its_inputs_rows_is_refused_with_the_reason(
    tmp_path: Path, example: Tensors | None
) -> None:
    above_half(tmp_path, example)
    with pytest.raises(RowsNotKept, match=r"output 'boxes' has shape .* one row for each"):
        BatchRunner("tiny", str(tmp_path), ["v"], 1)
    with pytest.raises(VariantUnavailable, match=r"output 'boxes' has shape .* one row for each"):
        ArtifactModel(str(tmp_path), 1).load("v")


async def test_rows_that_get_another_number_of_outputs_fail_alone(tmp_path: Path) -> None:
    above_half(tmp_path, {"x": np.array([[1, 0, 0, 0]], np.float32)})
    replica = BatchRunner("tiny", str(tmp_path), ["v"], 1)
    rows = np.array([[0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1]], np.float32)
    outputs, told = unpack(await replica.run("v", pack({"x": rows}, {"rows": [1, 1, 1]})))
    ((place, reason),) = told["bad"]
    assert place == 1
    assert "output 'boxes' has shape [2] for 1 rows of input" in reason
    assert [unpack(answer)[0]["boxes"].tolist() for answer in outputs["answers"]] == [[1.0], [1.0]]
    replica.close()


@pytest.mark.parametrize(
    "texts", [[b"a long text", b"", b"usual", b"short", b"a"], ["a long text", "", "usual"]]
)
def test_the_example_is_a_row_of_usual_size(texts: list[Any]) -> None:
    row, _ = unpack(encode({"word": np.array(texts, object)}, WORD))
    assert row["word"].tolist() == [b"usual"]
    wide = np.array([[text, b""] for text in texts], object)
    row, _ = unpack(encode({"word": wide}, [TensorSpec("word", "BYTES", (-1, 2))]))
    assert row["word"].tolist() == [[b"usual", b""]]


def test_an_example_fits_its_specs_datatypes(tmp_path: Path) -> None:
    model, inputs, outputs = tiny_onnx.lookup(4)
    tiny_onnx.write(tmp_path, model, inputs, outputs, {"index": np.array([3, 2], np.int32)})
    found = artifact.read(tmp_path / "v")
    example = example_of(found)
    assert example.is_real
    assert example.batch(3)["index"].tolist() == [3, 3, 3]
    opened = runner.load(found)
    assert opened.run(example.batch())["value"].tolist() == [13.0]
    opened.close()


def test_texts_with_outputs_by_token_fit_together_although_they_could_run_in_groups(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["input_ids"], ["tokens"])
    output = TensorSpec("tokens", "INT64", (-1, -1))
    tiny_onnx.write_text(tmp_path, [node], output, group_call_tokens=1)
    opened = runner.load(artifact.read(tmp_path / "v"))
    texts = np.array([b"cat", b"dog dog cat dog cat dog cat", b"dog"], object)
    assert opened.run({"word": texts})["tokens"].shape == (3, 7)
    opened.close()
