"""Values on every way in: each datatype takes exactly what it holds, and refuses the rest with the value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from optimizers.tensors import DTYPES, Array, TensorSpec
from router.bulk.chunks import arrange
from router.bulk.source import open_source
from router.cli.client import read
from router.sdk.codec import ModelInfo
from router.sdk.errors import InvalidRequest
from router.sdk.values import array_of

INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
#: The largest whole number up to which a float holds all of them.
FLOATS = {"FP16": 2**11, "BF16": 2**8, "FP32": 2**24, "FP64": 2**53}
LARGEST = {"FP16": 65504.0, "BF16": 3.3895313892515355e38, "FP32": float(np.finfo(np.float32).max)}


def spec_of(datatype: str) -> TensorSpec:
    return TensorSpec("x", datatype, (-1, 2))


def model_of(datatype: str) -> ModelInfo:
    return ModelInfo("m", ("a",), "", (spec_of(datatype),), ())


def by_sdk(row: list[Any], datatype: str, folder: Path) -> Array:
    return array_of([row], spec_of(datatype))


def by_objects(row: list[Any], datatype: str, folder: Path) -> Array:
    return array_of(np.array([row], dtype=object), spec_of(datatype))


def by_arrays(row: list[Any], datatype: str, folder: Path) -> Array:
    """One array for each number, of the narrowest dtype that numpy finds for it alone."""
    return array_of([[np.array(value) for value in row]], spec_of(datatype))


def by_command_line(row: list[Any], datatype: str, folder: Path) -> Array:
    return array_of(read.inputs(as_json([row]), model_of(datatype)), spec_of(datatype))


def by_jsonl(row: list[Any], datatype: str, folder: Path) -> Array:
    (folder / "in.jsonl").write_text(as_json(row) + "\n")
    return from_file(folder / "in.jsonl", datatype)


def by_csv(row: list[Any], datatype: str, folder: Path) -> Array:
    (folder / "in.csv").write_text("a,b\n" + ",".join(as_json(value) for value in row) + "\n")
    return from_file(folder / "in.csv", datatype)


def by_list_in_csv(row: list[Any], datatype: str, folder: Path) -> Array:
    (folder / "in.csv").write_text(f'x\n"{as_json(row)}"\n')
    return from_file(folder / "in.csv", datatype)


def by_parquet(row: list[Any], datatype: str, folder: Path) -> Array:
    columns = {name: pa.array([value], unsigned([value])) for name, value in zip("ab", row, strict=True)}
    pq.write_table(pa.table(columns), folder / "in.parquet")
    return from_file(folder / "in.parquet", datatype)


def by_list_in_parquet(row: list[Any], datatype: str, folder: Path) -> Array:
    kind = unsigned(row)
    column = pa.array([row], None if kind is None else pa.list_(kind))
    pq.write_table(pa.table({"x": column}), folder / "in.parquet")
    return from_file(folder / "in.parquet", datatype)


def unsigned(values: list[Any]) -> Any:
    """The type without which pyarrow takes no value of 2**63 or more."""
    return pa.uint64() if all(type(v) is int for v in values) and max(values) >= 2**63 else None


WAYS = (
    by_sdk,
    by_objects,
    by_arrays,
    by_command_line,
    by_jsonl,
    by_csv,
    by_list_in_csv,
    by_parquet,
    by_list_in_parquet,
)


def as_json(value: Any) -> str:
    """Python's own numbers as JSON, whatever their size."""
    if isinstance(value, list):
        return f"[{', '.join(map(as_json, value))}]"
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(repr(value), repr(value))


def from_file(path: Path, datatype: str) -> Array:
    """The one row of a file. Raises InvalidRequest with the reason for which it fails."""
    (chunk,) = open_source(path, model_of(datatype)).chunks(0, 10)
    batches, failures = arrange(chunk, model_of(datatype))
    for row, reason in failures:
        assert row == 0
        raise InvalidRequest(reason)
    return batches[0].inputs()["x"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("datatype", INTEGERS)
def test_the_ends_of_every_integer_come_through_exactly(way: Any, datatype: str, tmp_path: Path) -> None:
    limits = np.iinfo(DTYPES[datatype])
    for row in ([int(limits.min), 1], [1, int(limits.max)]):
        got = way(row, datatype, tmp_path)
        assert got.dtype == DTYPES[datatype]
        assert got.tolist() == [row]


@pytest.mark.parametrize("way", WAYS)
def test_whole_numbers_on_both_sides_of_two_to_63_stay_what_they_are(way: Any, tmp_path: Path) -> None:
    assert way([1, 9223372036854775813], "UINT64", tmp_path).tolist() == [[1, 9223372036854775813]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("datatype", INTEGERS)
def test_a_whole_number_outside_of_the_datatype_is_refused_with_the_value(
    way: Any, datatype: str, tmp_path: Path
) -> None:
    limits = np.iinfo(DTYPES[datatype])
    for value in (int(limits.min) - 1, int(limits.max) + 1):
        if way in (by_parquet, by_list_in_parquet) and not -(2**63) <= value < 2**64:
            continue  # Parquet's own integers end there
        with pytest.raises(InvalidRequest, match=rf"'x': {value} cannot be kept in the model's {datatype}"):
            way([1, value], datatype, tmp_path)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("datatype", FLOATS)
def test_a_whole_number_that_a_float_would_round_is_refused_with_the_value(
    way: Any, datatype: str, tmp_path: Path
) -> None:
    exact = FLOATS[datatype]
    assert way([exact, -exact], datatype, tmp_path).tolist() == [[exact, -exact]]
    for row in ([1, exact + 1], [0.5, exact + 1], [0.5, -exact - 1]):
        if way is by_list_in_parquet and 0.5 in row:
            continue  # a list of Parquet's has one type
        with pytest.raises(InvalidRequest, match=rf"'x': {row[1]} cannot be kept in the model's {datatype}"):
            way(row, datatype, tmp_path)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("datatype", FLOATS)
def test_a_fraction_is_rounded_and_what_is_not_a_number_stays(
    way: Any, datatype: str, tmp_path: Path
) -> None:
    got = way([0.1, float("nan")], datatype, tmp_path)
    assert got.dtype == DTYPES[datatype]
    assert got[0, 0] == DTYPES[datatype].type(0.1)
    assert np.isnan(got[0, 1])
    assert way([float("inf"), float("-inf")], datatype, tmp_path).tolist() == [[np.inf, -np.inf]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("datatype", LARGEST)
def test_a_float_never_overflows(way: Any, datatype: str, tmp_path: Path) -> None:
    largest = LARGEST[datatype]
    assert np.isfinite(way([largest, -largest], datatype, tmp_path)).all()
    with pytest.raises(InvalidRequest, match=rf"'x': .*cannot be kept in the model's {datatype}"):
        way([1.0, largest * 1.01], datatype, tmp_path)


OTHER_KINDS: tuple[tuple[list[Any], str, str], ...] = (
    ([1, 2.0], "INT64", "takes INT64, got .*0"),
    ([1, True], "INT64", "takes INT64, got .*"),
    ([True, False], "FP32", "takes FP32, got .*"),
    ([True, 0.5], "FP32", "takes FP32, got .*"),
    ([0, 1], "BOOL", "takes BOOL, got .*"),
    ([1.5, None], "FP64", "takes FP64, got a missing value.*; write NaN"),
    ([1, 2], "BYTES", "takes text or bytes, got .*"),
)


def can_say(way: Any, row: list[Any]) -> bool:
    """Text has no kinds, a list of Parquet's has one type, and numpy has no array of nothing."""
    if way is by_list_in_parquet:
        return None in row or len(set(map(type, row))) == 1
    return way not in (by_csv, by_parquet) and (way is not by_arrays or None not in row)


@pytest.mark.parametrize("way", WAYS)
def test_a_value_of_another_kind_is_refused(way: Any, tmp_path: Path) -> None:
    said = [case for case in OTHER_KINDS if can_say(way, case[0])]
    assert said or way in (by_csv, by_parquet)
    for row, datatype, says in said:
        with pytest.raises(InvalidRequest, match=f"input 'x': the model {says}"):
            way(row, datatype, tmp_path)
