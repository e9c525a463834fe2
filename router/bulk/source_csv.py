"""Rows of a CSV file (RFC 4180, UTF-8): columns named like the inputs, or in order the features of one."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from optimizers.tensors import Array, TensorSpec
from router.bulk.binding import ByName, bind, scalars_only
from router.bulk.chunks import RawChunk, Unreadable, is_scalar, text_column
from router.bulk.errors import InputError
from router.bulk.source import share
from router.client_codec import ModelInfo

_TRUE, _FALSE = ("true", "1"), ("false", "0")


class CsvSource:
    """A first row of numbers alone is data, as no input has a number for a name; else it is the header."""

    total: int | None = None

    def __init__(self, path: Path, model: ModelInfo) -> None:
        self._path = path
        first = next(self._rows(), None)
        if first is None:
            raise InputError(f"{path}: the file is empty")
        self._width = len(first)
        self._headless = all(_is_number(cell) for cell in first)
        self._binding = bind(self._width if self._headless else first, model)
        if isinstance(self._binding, ByName):
            self._columns = [(spec, first.index(spec.name)) for spec in self._binding.specs]

    def chunks(self, start: int, size: int) -> Iterator[RawChunk]:
        length = self._path.stat().st_size
        position = [0]
        rows = self._rows(position)
        for _ in islice(rows, start + (not self._headless)):
            pass
        while cells := list(islice(rows, size)):
            yield RawChunk(start, len(cells), self._read(cells), share(position[0], length))
            start += len(cells)

    def _rows(self, position: list[int] | None = None) -> Iterator[list[str]]:
        """Rows that are not blank. ``position`` is kept at the byte that reading has come to."""
        with (
            self._path.open("rb") as raw,
            io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file,
        ):
            try:
                for row in csv.reader(file, strict=True):
                    if position is not None:
                        position[0] = raw.tell()
                    if row:
                        yield row
            except (csv.Error, UnicodeDecodeError) as error:
                raise InputError(f"{self._path}: not CSV in UTF-8: {error}") from None

    def _read(self, cells: list[list[str]]) -> Any:
        if scalars_only(self._binding) and all(len(row) == self._width for row in cells):
            try:
                return self._block(cells)
            except (ValueError, OverflowError):
                pass  # one row at a time tells which
        return [self._row(row) for row in cells]

    def _block(self, cells: list[list[str]]) -> dict[str, Array]:
        if isinstance(self._binding, ByName):
            return {spec.name: _column([row[at] for row in cells], spec) for spec, at in self._columns}
        spec, shape = self._binding.spec, self._binding.shape
        flat = _column(list(chain.from_iterable(cells)), spec)
        return {spec.name: flat.reshape((len(cells), *shape))}

    def _row(self, cells: list[str]) -> object:
        if len(cells) != self._width:
            return Unreadable(f"the row has {len(cells)} cells, the first row has {self._width}")
        try:
            if isinstance(self._binding, ByName):
                return {spec.name: _cell(cells[at], spec) for spec, at in self._columns}
            spec, shape = self._binding.spec, self._binding.shape
            return {spec.name: _column(cells, spec).reshape(shape)}
        except (ValueError, OverflowError) as error:
            return Unreadable(str(error))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _column(cells: Sequence[str], spec: TensorSpec) -> Array:
    """One element from each cell. Raises ValueError naming a cell that holds none."""
    if spec.datatype == "BYTES":
        return text_column(cells)
    kind = spec.dtype.kind
    if kind == "b":
        return np.array([_truth(cell) for cell in cells])
    wide = {"f": np.float64, "u": np.uint64}.get(kind, np.int64)
    return np.array(cells, dtype=wide)


def _truth(cell: str) -> bool:
    word = cell.strip().lower()
    if word not in _TRUE + _FALSE:
        raise ValueError(f"{cell!r} is neither true nor false")
    return word in _TRUE


def _cell(cell: str, spec: TensorSpec) -> object:
    """The value of one input's cell: an element, or a JSON list where a row has more than one."""
    if is_scalar(spec):
        return _column([cell], spec).reshape(spec.shape[1:])
    try:
        value: object = orjson.loads(cell)
    except orjson.JSONDecodeError:
        raise ValueError(f"column {spec.name!r}: {cell[:40]!r} is not a JSON list") from None
    return value
