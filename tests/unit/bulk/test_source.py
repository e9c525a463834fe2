"""FILE in each format: the same rows come out, from any row on, and what does not fit is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from optimizers.tensors import TensorSpec
from router.bulk import chunks
from router.bulk.chunks import arrange
from router.bulk.errors import InputError
from router.bulk.source import RowSource, open_source
from router.sdk.codec import ModelInfo

IMAGE = TensorSpec("image", "FP32", (-1, 2, 3))
TEXT = TensorSpec("text", "BYTES", (-1,))
AGE = TensorSpec("age", "INT64", (-1, 1))
NAME = TensorSpec("name", "BYTES", (-1,))
VECTOR = TensorSpec("vector", "FP32", (-1, -1))
FLAG = TensorSpec("flag", "BOOL", (-1,))
FEATURES = np.arange(60, dtype=np.float32).reshape(10, 6)


def model(*specs: TensorSpec) -> ModelInfo:
    return ModelInfo("m", ("a",), "", specs, ())


def write(path: Path, values: Any) -> Path:
    """``values``: an array for .npy, columns for .parquet, text for the others."""
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".parquet":
        pq.write_table(pa.table(values), path, row_group_size=3)
    else:
        path.write_text(values, encoding="utf-8")
    return path


def features_csv(header: bool = True) -> str:
    names = ",".join(f"p{i}" for i in range(6)) + "\n" if header else ""
    return names + "".join(",".join(str(v) for v in row) + "\n" for row in FEATURES.tolist())


def gather(
    source: RowSource, info: ModelInfo, start: int = 0, size: int = 4
) -> tuple[dict[str, list[Any]], Any]:
    """All rows' inputs by name, in order, and the failures."""
    inputs: dict[str, list[Any]] = {spec.name: [] for spec in info.inputs}
    failures = []
    at = start
    for raw in source.chunks(start, size):
        assert (raw.start, raw.count <= size) == (at, True)
        at = raw.stop
        batches, failed = arrange(raw, info)
        failures += failed
        for batch in batches:
            for name, array in batch.inputs().items():
                inputs[name] += list(array)
    assert raw.position == 1.0
    return inputs, failures


SAME = {
    "in.npy": FEATURES,
    "in.csv": features_csv(),
    "bare.csv": features_csv(header=False),
    "in.jsonl": "".join(json.dumps(row.reshape(2, 3).tolist()) + "\n" for row in FEATURES),
    "named.jsonl": "".join(json.dumps({"image": row.reshape(2, 3).tolist()}) + "\n" for row in FEATURES),
    "in.parquet": {f"p{i}": FEATURES[:, i] for i in range(6)},
    "named.parquet": {"image": [row.reshape(2, 3).tolist() for row in FEATURES], "extra": ["x"] * 10},
    "named.csv": "id,image\n"
    + "".join(f'{i},"{row.reshape(2, 3).tolist()}"\n' for i, row in enumerate(FEATURES)),
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("start", [0, 4, 8, 10])
def test_every_format_gives_the_same_rows_from_any_row_on(tmp_path: Path, name: str, start: int) -> None:
    info = model(IMAGE)
    source = open_source(write(tmp_path / name, SAME[name]), info)
    assert source.total in (None, 10)
    if start == 10:
        assert list(source.chunks(start, 4)) == []
        return
    inputs, failures = gather(source, info, start)
    assert failures == []
    np.testing.assert_array_equal(np.stack(inputs["image"]), FEATURES[start:].reshape(-1, 2, 3))


TEXTS = ["plain", 'comma, and "quotes"', "two\nlines", "ünï"]
ONE_TEXT = {
    "in.csv": 'question\nplain\n"comma, and ""quotes"""\n"two\nlines"\nünï\n',
    "in.jsonl": "".join(json.dumps(text) + "\n" for text in TEXTS),
    "in.parquet": {"question": TEXTS},
}


@pytest.mark.parametrize("name", ONE_TEXT)
def test_one_column_of_text_is_the_text_input_whatever_its_name(tmp_path: Path, name: str) -> None:
    info = model(TEXT)
    header = True if name.endswith(".csv") else None
    inputs, failures = gather(open_source(write(tmp_path / name, ONE_TEXT[name]), info, header), info, size=3)
    assert (inputs["text"], failures) == (TEXTS, [])


MIXED: dict[str, Any] = {
    "in.csv": 'flag,name,unused,age,vector\ntrue,Ann,x,31,"[1, 2]"\n0,Bob,y,-4,[3]\n',
    "in.jsonl": '{"age": 31, "name": "Ann", "vector": [1, 2], "flag": true}\n'
    '{"age": -4, "name": "Bob", "vector": [3], "flag": false}\n',
    "in.parquet": {
        "flag": [True, False],
        "vector": [[1.0, 2.0], [3.0]],
        "age": [31, -4],
        "name": ["Ann", "Bob"],
    },
}


@pytest.mark.parametrize("name", MIXED)
def test_columns_named_like_the_inputs_may_be_of_every_kind_and_length(tmp_path: Path, name: str) -> None:
    info = model(AGE, NAME, VECTOR, FLAG)
    inputs, failures = gather(open_source(write(tmp_path / name, MIXED[name]), info), info)
    assert failures == []
    assert [v.tolist() for v in inputs["age"]] == [[31], [-4]]
    assert inputs["name"] == ["Ann", "Bob"]
    assert [v.tolist() for v in inputs["vector"]] == [[1, 2], [3]]
    assert [bool(v) for v in inputs["flag"]] == [True, False]


@pytest.mark.parametrize(
    ("name", "values", "bad"),
    [
        (
            "in.csv",
            "a,b\n1,2\n3,x\n5\n6,\n7,8\n",
            {1: "'x' is not a number", 2: "1 cells", 3: "a cell is empty"},
        ),
        (
            "in.jsonl",
            '[1, 2]\n[3, "x"]\n[5]\n[6, null]\n[7, 8]\n',
            {1: "got 'x'", 2: "shape [2]", 3: "missing"},
        ),
        (
            "in.parquet",
            {"a": [1, 3, 5, None, 7], "b": [2.0, None, 4.0, 6.0, 8.0]},
            {1: "missing", 3: "missing"},
        ),
    ],
)
def test_only_the_rows_that_do_not_fit_fail_each_with_its_reason(
    tmp_path: Path, name: str, values: Any, bad: dict[int, str]
) -> None:
    info = model(TensorSpec("x", "FP32", (-1, 2)))
    inputs, failures = gather(open_source(write(tmp_path / name, values), info), info)
    assert [row for row, _ in failures] == list(bad)
    for row, reason in failures:
        assert bad[row] in reason
    assert inputs["x"][0].tolist() == [1, 2]
    assert inputs["x"][-1].tolist() == [7, 8]
    assert len(inputs["x"]) == 5 - len(bad)


def test_whole_numbers_that_no_float_holds_come_through(tmp_path: Path) -> None:
    info = model(TensorSpec("id", "INT64", (-1,)))
    big = 2**62 + 1
    inputs, _ = gather(open_source(write(tmp_path / "in.csv", f"id\n{big}\n"), info), info)
    assert [int(v) for v in inputs["id"]] == [big]


@pytest.mark.parametrize(
    ("name", "values", "specs", "says"),
    [
        ("in.csv", "a,b,c\n1,2,3\n", (IMAGE,), r"3 columns: 'a', 'b', 'c'; .*'image' FP32 \[-1, 2, 3\]"),
        ("in.csv", "1,2,3\n", (IMAGE,), "3 columns without names"),
        ("in.csv", "text,age\n", (AGE, NAME), "name the columns like the inputs"),
        ("in.csv", "", (IMAGE,), "empty"),
        ("in.parquet", {"a": [1]}, (IMAGE,), "1 columns: 'a'"),
        ("in.npy", np.zeros((2, 5)), (IMAGE,), r"rows have shape \[5\]"),
        ("in.npy", np.float32(1), (IMAGE,), "single value"),
        ("in.npy", np.zeros((2, 5)), (AGE, NAME), "one input"),
        ("in.npy", np.array([{}], dtype=object), (IMAGE,), "not a .npy file that can be read"),
        ("in.txt", "1", (IMAGE,), "told by the suffix"),
    ],
)
def test_a_file_that_does_not_fit_the_model_is_refused_with_both_sides(
    tmp_path: Path, name: str, values: Any, specs: tuple[TensorSpec, ...], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        open_source(write(tmp_path / name, values), model(*specs))


@pytest.mark.parametrize("name", ["in.parquet", "in.npy"])
def test_a_file_that_is_not_what_its_suffix_says_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"not at all")
    with pytest.raises(InputError, match="can be read"):
        open_source(path, model(IMAGE))


def test_a_json_line_that_is_none_stands_apart_and_the_rest_runs(tmp_path: Path) -> None:
    path, info = tmp_path / "in.jsonl", model(TensorSpec("x", "FP32", (-1, 2)))
    lines = [
        b"[1, 2]",
        b"[3, 4",
        b"",
        b"\xff",
        b"[5, NaN]",
        b"[" * 5_000,
        b"   ",
        b"[-Infinity, 6]",
        b"[1e400, 1]",
    ]
    for mark, end in ((b"", b"\n"), (b"\xef\xbb\xbf", b"\r\n")):
        path.write_bytes(mark + end.join(lines))
        inputs, failures = gather(open_source(path, info), info, size=3)
        assert [row for row, _ in failures] == [1, 2, 4, 6]
        assert all("the line is not JSON" in reason for _, reason in failures)
        np.testing.assert_array_equal(np.stack(inputs["x"]), [[1, 2], [5, np.nan], [-np.inf, 6]])


def test_a_file_of_python_objects_is_refused_in_words_and_never_unpickled(tmp_path: Path) -> None:
    path = write(tmp_path / "in.npy", np.array([{}], dtype=object))
    with pytest.raises(InputError, match="holds Python objects, which are never run here"):
        open_source(path, model(IMAGE))


def test_two_parquet_columns_of_a_name_that_is_read_are_refused(tmp_path: Path) -> None:
    for names in (["image", "image"], ["a", "a"]):
        columns = [pa.array([[1.0] * 3] * 2)] * 2 if names[0] == "image" else [pa.array([1.0])] * 2
        pq.write_table(pa.Table.from_arrays(columns, names), tmp_path / "in.parquet")
        with pytest.raises(InputError, match=r"both named 'image'|the same name"):
            open_source(tmp_path / "in.parquet", model(TensorSpec("image", "FP32", (-1, -1))))


def test_parquet_columns_of_several_kinds_fail_by_the_row_and_keep_whole_numbers(tmp_path: Path) -> None:
    info = model(TensorSpec("x", "FP64", (-1, 2)))
    big = 2**53 + 1
    columns = {"a": [1, big, 2**53, None], "b": [0.5, 1.5, None, 2.5]}
    inputs, failures = gather(open_source(write(tmp_path / "in.parquet", columns), info), info, size=10)
    assert [v.tolist() for v in inputs["x"]] == [[1, 0.5]]
    assert [row for row, _ in failures] == [1, 2, 3]
    assert f"{big} cannot be kept" in failures[0][1]
    assert all("a missing value" in reason for _, reason in failures[1:])


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    path = write(tmp_path / "in.parquet", {"a": [1]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'hybrid-router\[parquet\]'"):
        open_source(path, model(IMAGE))


@pytest.mark.parametrize(
    ("dims", "features", "shape"),
    [
        ((2, 3), 6, (2, 3)),
        ((2, 3), 5, None),
        ((-1, 3), 6, (2, 3)),
        ((-1, 3), 5, None),
        ((-1, -1), 4, None),
        ((), 1, ()),
    ],
)
def test_flat_features_take_the_shape_of_a_row_where_they_fit(
    dims: tuple[int, ...], features: int, shape: tuple[int, ...] | None
) -> None:
    assert chunks.feature_shape(TensorSpec("x", "FP32", (-1, *dims)), features) == shape


def test_rows_of_unequal_shapes_go_in_batches_of_equal_ones(tmp_path: Path) -> None:
    info = model(VECTOR)
    source = open_source(write(tmp_path / "in.jsonl", "[1]\n[2]\n[3, 4]\n[5]\n"), info)
    (raw,) = source.chunks(0, 10)
    batches, _ = arrange(raw, info)
    assert [list(batch.rows) for batch in batches] == [[0, 1], [2], [3]]
    assert [batch.name for batch in batches] == [(0, 1), (2, 2), (3, 3)]
