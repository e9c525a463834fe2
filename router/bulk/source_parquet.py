"""Rows of a Parquet file: columns named like the inputs, or in order the features of one. Needs pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from router.bulk.binding import ByName, Features, bind
from router.bulk.chunks import RawChunk, share
from router.bulk.errors import InputError
from router.sdk.codec import ModelInfo
from router.sdk.errors import InvalidRequest
from router.sdk.values import array_of, objects

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
        self._names = names
        if isinstance(self._binding, ByName):
            self._names = [names[at] for at in self._binding.columns]
        if not set(self._names) <= {name for name in names if names.count(name) == 1}:
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

    def _rows(self, table: Any) -> dict[str, Any] | list[object]:
        columns = [self._column(table.column(name)) for name in self._names]
        if isinstance(self._binding, ByName):
            return {spec.name: column for spec, column in zip(self._binding.specs, columns, strict=True)}
        return self._features(self._binding, columns)

    @staticmethod
    def _features(binding: Features, columns: list[Any]) -> dict[str, Any] | list[object]:
        name = binding.spec.name
        try:
            # Each by itself: numpy would make floats of columns of several kinds.
            block = np.stack([array_of(column, binding.spec) for column in columns], axis=1)
            return {name: block.reshape((len(block), *binding.shape))}
        except (InvalidRequest, ValueError):
            # A missing value somewhere: only its own row is at fault.
            rows = zip(*(list(column) for column in columns), strict=True)
            return [{name: objects(row).reshape(binding.shape)} for row in rows]

    def _column(self, column: Any) -> Any:
        """A numpy array of numbers where no row lacks one, else a list with Python's value for each row."""
        types = self._arrow.types
        plain = (types.is_integer, types.is_floating, types.is_boolean)
        if column.null_count == 0 and any(is_kind(column.type) for is_kind in plain):
            return column.to_numpy()
        return column.to_pylist()
