"""RESULTS in each format read back by others' readers: the same answers, failed rows and all."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest

from optimizers.tensors import Array, TensorSpec
from router.bulk.chunks import AnsweredRows, Settled
from router.bulk.errors import InputError
from router.bulk.results import result_format
from router.bulk.store import Paths, Store
from tests.unit.bulk.harness import BulkServer, FaultyDisk, order_of, submit, table

SPECS = (
    TensorSpec("label", "INT64", (-1,)),
    TensorSpec("scores", "FP32", (-1, 2)),
    TensorSpec("word", "BYTES", (-1,)),
    TensorSpec("grid", "FP64", (-1, 2, 1)),
)


def text(*items: bytes) -> Array:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def part(rows: list[int], *words: bytes) -> AnsweredRows:
    n = np.array(rows)
    scores = np.stack([n / 10, n / 3], axis=1).astype(np.float32)
    grid = np.stack([n, -n], axis=1).astype(np.float64)[..., None]
    return AnsweredRows(rows, {"label": n, "scores": scores, "word": text(*words), "grid": grid}, "int8")


CHUNKS = (
    Settled(0, 2, 0.3, [], [(0, "bad"), (1, "bad")]),
    Settled(2, 5, 0.6, [part([2], b"two"), part([4], b"f\xffur")], [(3, "worse")]),
    Settled(5, 7, 1.0, [part([5, 6], "fünf".encode(), b"six")], []),
)


def write(results: Path, specs: tuple[TensorSpec, ...], chunks: tuple[Settled, ...] = CHUNKS) -> Path:
    store = Store(Paths(results), {}, specs, disk=FaultyDisk())
    names = [spec.name for spec in specs]
    for chunk in chunks:
        parts = [AnsweredRows(p.rows, {n: p.outputs[n] for n in names}, p.variant) for p in chunk.parts]
        store.append(Settled(chunk.start, chunk.stop, chunk.position, parts, chunk.failures))
    store.finish()
    store.close()
    return results


def test_json_lines_hold_an_object_for_each_answered_row(tmp_path: Path) -> None:
    lines = write(tmp_path / "out.jsonl", SPECS).read_bytes().splitlines()
    rows = [orjson.loads(line) for line in lines]
    assert [row["row"] for row in rows] == [2, 4, 5, 6]
    assert rows[1] == {
        "row": 4,
        "outputs": {"label": 4, "scores": [0.4, 1.3333334], "word": r"f\xffur", "grid": [[4.0], [-4.0]]},
        "variant": "int8",
    }
    assert rows[2]["outputs"]["word"] == "fünf"


def test_csv_has_a_column_for_each_scalar_and_numbered_ones_for_each_vector(tmp_path: Path) -> None:
    rows = list(csv.DictReader(write(tmp_path / "out.csv", SPECS).open(encoding="utf-8", newline="")))
    assert [row["row"] for row in rows] == ["2", "4", "5", "6"]
    assert rows[3] == {
        "row": "6", "variant": "int8", "label": "6", "scores_0": "0.6", "scores_1": "2.0",
        "word": "six", "grid_0": "6.0", "grid_1": "-6.0",
    }  # fmt: skip


def test_parquet_keeps_dtypes_vectors_and_bytes(tmp_path: Path) -> None:
    read = pq.read_table(write(tmp_path / "out.parquet", SPECS))
    assert read.column("row").to_pylist() == [2, 4, 5, 6]
    assert read.column("variant").to_pylist() == ["int8"] * 4
    assert read.column("word").to_pylist() == [b"two", b"f\xffur", "fünf".encode(), b"six"]
    assert str(read.schema.field("label").type) == "int64"
    assert read.column("grid").to_pylist()[0] == [[2.0], [-2.0]]
    np.testing.assert_array_equal(
        np.array(read.column("scores").to_pylist(), np.float32)[:, 1],
        np.array([2, 4, 5, 6], np.float32) / np.float32(3),
    )


def test_npy_has_a_row_for_every_row_of_the_file(tmp_path: Path) -> None:
    scores = np.load(write(tmp_path / "scores.npy", SPECS[1:2]), allow_pickle=False)
    assert scores.shape == (7, 2)
    assert scores.dtype == np.float32
    assert np.isnan(scores[[0, 1, 3]]).all()
    np.testing.assert_array_equal(scores[[2, 4, 5, 6], 0], np.array([0.2, 0.4, 0.5, 0.6], np.float32))
    labels = np.load(write(tmp_path / "labels.npy", SPECS[:1]), allow_pickle=False)
    least = np.iinfo(np.int64).min
    assert labels.tolist() == [least, least, 2, least, 4, 5, 6]


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.npy", "out.parquet"])
def test_a_file_without_any_answer_is_still_one_of_its_format(tmp_path: Path, name: str) -> None:
    results = write(tmp_path / name, SPECS[1:2], CHUNKS[:1])
    if name.endswith(".npy"):
        assert np.isnan(np.load(results)).all()
        assert np.load(results).shape == (2, 2)
    elif name.endswith(".parquet"):
        assert pq.read_table(results).num_rows == 0
    else:
        assert results.read_text() == ("row,variant,scores_0,scores_1\n" if name.endswith(".csv") else "")
    assert len(Paths(results).failed.read_text().splitlines()) == 2


@pytest.mark.parametrize("dtype", ["<f2", "<f8", "|u1", "<i4", "|b1"])
def test_npy_of_every_kind_of_number_is_read_back(tmp_path: Path, dtype: str) -> None:
    value = np.ones((1, 3), dtype)
    chunks = (Settled(0, 2, 1.0, [AnsweredRows([1], {"x": value}, None)], [(0, "bad")]),)
    read = np.load(write(tmp_path / "x.npy", (TensorSpec("x", "FP32", (-1, 3)),), chunks))
    assert read.dtype == np.dtype(dtype)
    assert (read[1] == 1).all()
    missing = {"f": math.nan, "u": 255, "i": -(2**31), "b": False}[read.dtype.kind]
    np.testing.assert_array_equal(read[0], np.full(3, missing, dtype))


def test_text_is_refused_for_npy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"text, which \.npy cannot hold"):
        result_format(tmp_path / "x.npy", SPECS[2:3])


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.npy", "out.parquet"])
async def test_only_the_outputs_that_were_asked_for_are_fetched_and_written(
    tmp_path: Path, name: str, online: bool
) -> None:
    np.save(tmp_path / "in.npy", table(20))
    results = tmp_path / name
    server = BulkServer()
    server.online = online
    await submit(server, order_of(tmp_path / "in.npy", results, outputs=("label",)))
    want = [i % 10 for i in range(20)]
    if name.endswith(".npy"):
        assert np.load(results).tolist() == want
    elif name.endswith(".parquet"):
        assert pq.read_table(results).column_names == ["row", "variant", "label"]
    elif name.endswith(".csv"):
        assert results.read_text().splitlines()[:2] == ["row,variant,label", "0,a,0"]
    else:
        assert orjson.loads(results.read_bytes().splitlines()[3])["outputs"] == {"label": 3}
