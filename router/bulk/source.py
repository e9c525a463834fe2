"""FILE as rows in chunks, whichever its format: JSON lines, CSV, Parquet or one .npy array.

Row numbers count from 0. A source can start at any row, and holds one chunk at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from optimizers.files.text import MARK, TextError, check_beginning
from optimizers.tensors import Array
from router.bulk.chunks import RawChunk, Unreadable, feature_shape, share
from router.bulk.errors import InputError
from router.sdk.codec import ModelInfo
from router.sdk.values import read_json

FORMATS = (".jsonl", ".ndjson", ".csv", ".parquet", ".npy")


class RowSource(Protocol):
    """``total`` is the number of rows, None where only reading the whole file would tell."""

    @property
    def total(self) -> int | None: ...

    def chunks(self, start: int, size: int) -> Iterator[RawChunk]:
        """The rows from ``start`` on, ``size`` at a time. Raises InputError for a file that is none."""


def open_source(path: Path, model: ModelInfo, header: bool | None = None) -> RowSource:
    """The rows of ``path``; ``header`` says whether a .csv begins with names, where it does not tell itself.

    Raises InputError for what cannot be read or does not fit the model.
    """
    if not model.inputs:
        raise InputError(f"the server does not say what model {model.name!r} takes")
    suffix = path.suffix.lower()
    if header is not None and suffix != ".csv":
        raise InputError(f"{path}: --header is for .csv; no other format needs to be told of one")
    if suffix == ".csv":
        from router.bulk.source_csv import CsvSource

        return CsvSource(path, model, header)
    if suffix == ".parquet":
        from router.bulk.source_parquet import ParquetSource

        return ParquetSource(path, model)
    if suffix == ".npy":
        return NpySource(path, model)
    if suffix in (".jsonl", ".ndjson"):
        return JsonLines(path)
    raise InputError(f"{path}: the format is told by the suffix, one of {', '.join(FORMATS)}")


class JsonLines:
    """One JSON value a line: an object of inputs by name, or the bare value of a model with one input.

    Blank lines are no rows.
    """

    total: int | None = None

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            try:
                check_beginning(file.read(64))
            except TextError as error:
                raise InputError(f"{path}: {error}") from None

    def chunks(self, start: int, size: int) -> Iterator[RawChunk]:
        length = self._path.stat().st_size
        with self._path.open("rb") as file:
            lines = _counted(file)
            for _ in islice(lines, start):
                pass
            while rows := list(islice(lines, size)):
                parsed = [_parse(line) for line in rows]
                yield RawChunk(start, len(rows), parsed, share(file.tell(), length))
                start += len(rows)


def _counted(file: BinaryIO) -> Iterator[bytes]:
    if file.read(len(MARK)) != MARK:
        file.seek(0)
    # Not `for line in file`: the position is asked for between lines.
    while line := file.readline():
        if not line.isspace():
            yield line


def _parse(line: bytes) -> object:
    try:
        return read_json(line)
    except ValueError as error:
        return Unreadable(f"the line is not JSON: {error}")


def npy_problem(error: Exception) -> str:
    """Why numpy refuses a .npy file, in words that help whoever has it."""
    if "pickle" in str(error) or "Python objects" in str(error):
        return "it holds Python objects, which are never run here: save it with a dtype of numbers or text"
    return str(error)


class NpySource:
    """One array with the rows on its first axis, mapped into memory rather than read."""

    def __init__(self, path: Path, model: ModelInfo) -> None:
        if len(model.inputs) != 1:
            names = ", ".join(repr(spec.name) for spec in model.inputs)
            raise InputError(
                f"{path}: a .npy file holds one input, model {model.name!r} takes {names}; "
                "use .jsonl or .parquet"
            )
        try:
            array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise InputError(f"{path}: not a .npy file that can be read: {npy_problem(error)}") from None
        if array.ndim == 0:
            raise InputError(f"{path}: the array is a single value; rows are expected on its first axis")
        self._array, self._shape = array, self._row_shape(path, array, model)

    @staticmethod
    def _row_shape(path: Path, array: Array, model: ModelInfo) -> tuple[int, ...]:
        spec, row = model.inputs[0], array.shape[1:]
        fits = len(row) == len(spec.shape) - 1 and all(
            want in (-1, got) for got, want in zip(row, spec.shape[1:], strict=True)
        )
        shape = row if fits else feature_shape(spec, math.prod(row))
        if shape is None:
            raise InputError(
                f"{path}: its rows have shape {list(row)}, input {spec.name!r} of model {model.name!r} "
                f"takes {list(spec.shape[1:])} (-1 is any size)"
            )
        return shape

    @property
    def total(self) -> int:
        return len(self._array)

    def chunks(self, start: int, size: int) -> Iterator[RawChunk]:
        while start < self.total:
            rows = np.array(self._array[start : start + size])
            stop = start + len(rows)
            shaped = rows.reshape((len(rows), *self._shape))
            yield RawChunk(start, len(rows), shaped, share(stop, self.total))
            start = stop
