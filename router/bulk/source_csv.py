"""Rows of a CSV file: columns named like the inputs, or in order the features of one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from optimizers.tensors import Array, TensorSpec
from router.bulk.binding import ByName, bind, has_header, scalars_only
from router.bulk.chunks import RawChunk, Unreadable, is_scalar, share
from router.bulk.csv_records import records
from router.bulk.errors import InputError
from router.sdk.codec import ModelInfo
from router.sdk.errors import InvalidRequest
from router.sdk.values import array_of_cells, read_json


class CsvSource:
    """``header`` says whether the first line names the columns; None: it is looked at.

    Raises InputError where that cannot be known, so that no row is taken for names or names for a row.
    """

    total: int | None = None

    def __init__(self, path: Path, model: ModelInfo, header: bool | None = None) -> None:
        self._path = path
        first = next(records(path), None)
        if first is None:
            raise InputError(f"{path}: the file is empty")
        if isinstance(first, Unreadable):
            raise InputError(f"{path}: its first line tells the columns, and {first.reason}")
        self._width = len(first)
        named = has_header(first, model) if header is None else header
        self._binding = bind(self._width if named is False else first, model)
        if named is None:
            cells = ", ".join(repr(cell) for cell in first[:4]) + (", ..." if len(first) > 4 else "")
            raise InputError(
                f"{path}: the first line ({cells}) may name the columns or be a row: "
                "say which with --header yes or --header no"
            )
        self._skip = int(named)
        if isinstance(self._binding, ByName):
            self._columns = list(zip(self._binding.specs, self._binding.columns, strict=True))
            self._numbers = [at for spec, at in self._columns if spec.datatype != "BYTES" and is_scalar(spec)]
        else:
            self._numbers = [] if self._binding.spec.datatype == "BYTES" else list(range(self._width))

    def chunks(self, start: int, size: int) -> Iterator[RawChunk]:
        length = self._path.stat().st_size
        position = [0]
        rows = records(self._path, self._may_be_row, position)
        for _ in islice(rows, start + self._skip):
            pass
        while taken := list(islice(rows, size)):
            yield RawChunk(start, len(taken), self._read(taken), share(position[0], length))
            start += len(taken)

    def _may_be_row(self, cells: list[str]) -> bool:
        """No number runs over two lines, and each row has as many cells."""
        if len(cells) != self._width:
            return False
        return not any("\n" in cells[at] or "\r" in cells[at] for at in self._numbers)

    def _read(self, rows: list[list[str] | Unreadable]) -> Any:
        whole = [row for row in rows if isinstance(row, list) and len(row) == self._width]
        if scalars_only(self._binding) and len(whole) == len(rows):
            try:
                return self._block(whole)
            except InvalidRequest:
                pass  # one row at a time tells which
        return [self._row(row) for row in rows]

    def _block(self, rows: list[list[str]]) -> dict[str, Array]:
        if isinstance(self._binding, ByName):
            return {spec.name: array_of_cells([row[at] for row in rows], spec) for spec, at in self._columns}
        spec, shape = self._binding.spec, self._binding.shape
        flat = array_of_cells(list(chain.from_iterable(rows)), spec)
        return {spec.name: flat.reshape((len(rows), *shape))}

    def _row(self, cells: list[str] | Unreadable) -> object:
        if isinstance(cells, Unreadable):
            return cells
        if len(cells) != self._width:
            return Unreadable(f"the row has {len(cells)} cells, the first row has {self._width}")
        try:
            if isinstance(self._binding, ByName):
                return {spec.name: _cell(cells[at], spec) for spec, at in self._columns}
            spec, shape = self._binding.spec, self._binding.shape
            return {spec.name: array_of_cells(cells, spec).reshape(shape)}
        except InvalidRequest as error:
            return Unreadable(str(error))


def _cell(cell: str, spec: TensorSpec) -> object:
    """The value of one input's cell: an element, or a JSON list where a row has more than one."""
    if is_scalar(spec):
        return array_of_cells([cell], spec).reshape(spec.shape[1:])
    try:
        return read_json(cell)
    except ValueError:
        raise InvalidRequest(f"input {spec.name!r}: {cell[:40]!r} is not a JSON list") from None
