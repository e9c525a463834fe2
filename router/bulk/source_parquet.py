"""Rows of a Parquet file: columns named like the inputs, or in order the features of one. Needs pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from optimizers.tensors import Array
from router.bulk.binding import ByName, Features, bind
from router.bulk.chunks import RawChunk, text_column
from router.bulk.errors import InputError
from router.bulk.source import share
from router.client_codec import ModelInfo

_READ_ROWS = 8192


def pyarrow_or_error() -> Any:
    """The pyarrow package. Raises InputError with how to get it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise InputError("Parquet needs pyarrow: pip install 'hybrid-router[parquet]'") from None
    return pyarrow


class ParquetSource:
    """Row groups before the first row that is wanted are skipped without being read."""

    def __init__(self, path: Path, model: ModelInfo) -> None:
        self._arrow = pyarrow_or_error()
        try:
            self._file = self._arrow.parquet.ParquetFile(path)
        except self._arrow.ArrowInvalid as error:
            raise InputError(f"{path}: not a Parquet file that can be read: {error}") from None
        names = self._file.schema_arrow.names
        self._binding = bind(names, model)
        chosen = isinstance(self._binding, ByName)
        self._names = (
            [spec.name for spec in self._binding.specs] if isinstance(self._binding, ByName) else names
        )
        if not chosen and len(set(names)) != len(names):
            raise InputError(f"{path}: two of its columns have the same name")

    @property
    def total(self) -> int:
        rows: int = self._file.metadata.num_rows
        return rows

    def chunks(self, start: int, size: int) -> Iterator[RawChunk]:
        for table in self._tables(start, size):
            stop = start + table.num_rows
            yield RawChunk(start, table.num_rows, self._rows(table), share(stop, self.total))
            start = stop

    def _tables(self, start: int, size: int) -> Iterator[Any]:
        """Tables of ``size`` rows; pyarrow's own batches end where row groups do."""
        meta = self._file.metadata
        before, group = 0, 0
        while group < meta.num_row_groups and before + meta.row_group(group).num_rows <= start:
            before += meta.row_group(group).num_rows
            group += 1
        batches = self._file.iter_batches(
            batch_size=_READ_ROWS, row_groups=list(range(group, meta.num_row_groups)), columns=self._names
        )
        held, skip = None, start - before
        for batch in batches:
            table = self._arrow.Table.from_batches([batch])
            cut = min(skip, table.num_rows)
            table, skip = table.slice(cut), skip - cut
            held = table if held is None else self._arrow.concat_tables([held, table])
            at = 0
            while held.num_rows - at >= size:
                yield held.slice(at, size)
                at += size
            held = held.slice(at)
        if held is not None and held.num_rows:
            yield held

    def _rows(self, table: Any) -> dict[str, Array] | list[object]:
        columns = {name: self._column(table.column(name)) for name in self._names}
        if isinstance(self._binding, ByName):
            return columns
        return self._features(self._binding, list(columns.values()))

    @staticmethod
    def _features(binding: Features, columns: list[Array]) -> dict[str, Array] | list[object]:
        name = binding.spec.name
        if len(columns) > 1 and any(column.dtype == object for column in columns):
            # A missing value somewhere: only its own row is at fault.
            return [{name: np.array(row).reshape(binding.shape)} for row in zip(*columns, strict=True)]
        block = np.stack(columns, axis=1)
        return {name: block.reshape((len(block), *binding.shape))}

    def _column(self, column: Any) -> Array:
        types = self._arrow.types
        if column.null_count == 0:
            if (
                types.is_integer(column.type)
                or types.is_floating(column.type)
                or types.is_boolean(column.type)
            ):
                array: Array = column.to_numpy()
                return array
            if types.is_list(column.type) or types.is_fixed_size_list(column.type):
                try:
                    return np.array(column.to_pylist())
                except ValueError:
                    pass  # rows of different lengths
        return _objects(column.to_pylist())


def _objects(values: list[Any]) -> Array:
    if not any(isinstance(value, list) for value in values):
        return text_column(values)
    column = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        column[index] = value
    return column
