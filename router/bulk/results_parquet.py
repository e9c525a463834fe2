"""RESULTS as Parquet: a spool of Arrow record batches while it grows, one Parquet file at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from optimizers.tensors import Array
from router.bulk.chunks import Settled
from router.bulk.disk import Disk
from router.bulk.ledger import Layout
from router.bulk.result_format import ResultFormat, require_layout
from router.bulk.source_parquet import pyarrow_or_error

_GROUP_ROWS = 65_536


class ParquetResults(ResultFormat):
    """Columns row, variant and each output; vectors are fixed-size lists, BYTES are binary.

    The spool is the Arrow IPC stream format: a schema, then record batches, each self-contained.
    """

    spooled = True

    def __init__(self) -> None:
        self._arrow = pyarrow_or_error()

    def prologue(self, layout: Layout, start: int) -> Iterator[bytes]:
        yield self._schema(layout).serialize().to_pybytes()

    def encode(self, chunk: Settled, layout: Layout) -> bytes:
        schema = self._schema(layout)
        messages = []
        for part in chunk.parts:
            require_layout(part, layout)
            columns = [
                self._arrow.array(list(part.rows), self._arrow.int64()),
                self._arrow.array([part.variant] * len(part.rows), self._arrow.string()),
                *(self._column(array) for array in part.outputs.values()),
            ]
            batch = self._arrow.RecordBatch.from_arrays(columns, schema=schema)
            messages.append(batch.serialize().to_pybytes())
        return b"".join(messages)

    def finish(self, disk: Disk, written: Path, target: Path, rows: int, layout: Layout) -> None:
        partial = target.with_name(target.name + ".tmp")
        schema = self._schema(layout)
        with self._arrow.parquet.ParquetWriter(partial, schema) as writer:
            for table in self._groups(written):
                writer.write_table(table)
        disk.replace(partial, target)

    def _groups(self, spool: Path) -> Iterator[Any]:
        """The spool's rows in tables large enough to make good row groups."""
        if spool.stat().st_size == 0:
            return
        held: list[Any] = []
        with self._arrow.OSFile(str(spool)) as file, self._arrow.ipc.open_stream(file) as stream:
            for batch in stream:
                held.append(batch)
                if sum(len(b) for b in held) >= _GROUP_ROWS:
                    yield self._arrow.Table.from_batches(held)
                    held = []
        if held:
            yield self._arrow.Table.from_batches(held)

    def _schema(self, layout: Layout) -> Any:
        fields = [("row", self._arrow.int64()), ("variant", self._arrow.string())]
        return self._arrow.schema(
            fields + [(name, self._type(dtype, shape)) for name, dtype, shape in layout]
        )

    def _type(self, dtype: str, shape: tuple[int, ...]) -> Any:
        kind: Any = self._arrow.binary()
        if np.dtype(dtype) != np.dtype(object):
            kind = self._arrow.from_numpy_dtype(np.dtype(dtype))
        for size in reversed(shape):
            kind = self._arrow.list_(kind, size)
        return kind

    def _column(self, array: Array) -> Any:
        flat = array.ravel()
        if array.dtype == object:
            raw = [item.encode() if isinstance(item, str) else bytes(item) for item in flat]
            column = self._arrow.array(raw, self._arrow.binary())
        else:
            column = self._arrow.array(flat)
        for size in reversed(array.shape[1:]):
            column = self._arrow.FixedSizeListArray.from_arrays(column, size)
        return column
