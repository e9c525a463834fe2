"""RESULTS in the format that its suffix names: what a settled chunk looks like as bytes.

Parquet has its index at the end: it is made from a spool when all rows are there.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from optimizers.tensors import Array, TensorSpec
from router.bulk.chunks import Settled
from router.bulk.disk import Disk
from router.bulk.errors import InputError
from router.bulk.ledger import Layout
from router.bulk.result_format import ResultFormat, require_layout

FORMATS = (".jsonl", ".ndjson", ".csv", ".npy", ".parquet")
_NPY_ALIGN = 64
_FILL_BYTES = 1 << 20


def result_format(path: Path, outputs: Sequence[TensorSpec]) -> ResultFormat:
    """The format of ``path`` for these outputs. Raises InputError where it cannot hold them."""
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return JsonLinesResults()
    if suffix == ".csv":
        return CsvResults()
    if suffix == ".parquet":
        from router.bulk.results_parquet import ParquetResults

        return ParquetResults()
    if suffix == ".npy":
        if len(outputs) != 1:
            names = ", ".join(spec.name for spec in outputs)
            raise InputError(f"{path}: a .npy file holds one output; pick it with --output, of {names}")
        if outputs[0].datatype == "BYTES":
            raise InputError(
                f"{path}: output {outputs[0].name!r} is text, which .npy cannot hold; use .jsonl"
            )
        return NpyResults()
    raise InputError(f"{path}: the format is told by the suffix, one of {', '.join(FORMATS)}")


def as_text(array: Array) -> list[str]:
    """BYTES as text; what is no UTF-8 is escaped as ``\\xNN``."""
    return [
        item if isinstance(item, str) else bytes(item).decode("utf-8", "backslashreplace")
        for item in array.ravel()
    ]


class JsonLinesResults(ResultFormat):
    """An object per answered row: ``{"row": 0, "outputs": {...}, "variant": "int8"}``. NaN is null."""

    one_layout = False

    def encode(self, chunk: Settled, layout: Layout) -> bytes:
        lines = []
        option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
        for part in chunk.parts:
            columns = {name: _json_rows(array) for name, array in part.outputs.items()}
            for index, row in enumerate(part.rows):
                outputs = {name: column[index] for name, column in columns.items()}
                lines.append(
                    orjson.dumps({"row": row, "outputs": outputs, "variant": part.variant}, option=option)
                )
        return b"".join(lines)


def _json_rows(array: Array) -> Any:
    if array.dtype == object:
        nested: Any = np.array([*as_text(array), None], dtype=object)[:-1].reshape(array.shape).tolist()
        return nested
    return np.ascontiguousarray(array)


class CsvResults(ResultFormat):
    """Columns row, variant, then each output: one column, or ``name_0``, ``name_1``, ... for a vector."""

    def prologue(self, layout: Layout, start: int) -> Iterator[bytes]:
        names = ["row", "variant"]
        for name, _, shape in layout:
            size = math.prod(shape)
            names += [name] if size == 1 else [f"{name}_{i}" for i in range(size)]
        yield _csv([names])

    def encode(self, chunk: Settled, layout: Layout) -> bytes:
        lines: list[Sequence[object]] = []
        for part in chunk.parts:
            require_layout(part, layout)
            columns = [_csv_cells(array, len(part.rows)) for array in part.outputs.values()]
            for index, row in enumerate(part.rows):
                lines.append(
                    [row, part.variant or "", *(cell for column in columns for cell in column[index])]
                )
        return _csv(lines)


def _csv_cells(array: Array, rows: int) -> list[list[Any]]:
    if array.dtype == object:
        flat = as_text(array)
    else:
        # As text, a float32 is the shortest number that reads back as the same float32.
        flat = array.ravel().astype(str).tolist()
        if array.dtype == bool:
            flat = [cell.lower() for cell in flat]
    width = len(flat) // rows if rows else 0
    return (
        [flat[at : at + width] for at in range(0, len(flat), width)] if width else [[] for _ in range(rows)]
    )


def _csv(rows: Sequence[Sequence[object]]) -> bytes:
    import csv

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


class NpyResults(ResultFormat):
    """One array with a row for every row of FILE.

    A failed row holds what no answer is likely to: NaN, the least signed or the largest unsigned
    number, False.
    """

    def prologue(self, layout: Layout, start: int) -> Iterator[bytes]:
        yield _npy_header(layout, 0)
        fill = _fill(layout)
        at_once = max(1, _FILL_BYTES // max(1, fill.nbytes))
        while start > 0:
            count = min(start, at_once)
            yield np.repeat(fill[None], count, axis=0).tobytes()
            start -= count

    def encode(self, chunk: Settled, layout: Layout) -> bytes:
        rows = np.repeat(_fill(layout)[None], chunk.stop - chunk.start, axis=0)
        for part in chunk.parts:
            require_layout(part, layout)
            (array,) = part.outputs.values()
            rows[np.asarray(part.rows) - chunk.start] = array
        return rows.tobytes()

    def finish(self, disk: Disk, written: Path, target: Path, rows: int, layout: Layout) -> None:
        disk.overwrite(target, _npy_header(layout, rows))


def _fill(layout: Layout) -> Array:
    """One row of an answer that is not there."""
    _, dtype, shape = layout[0]
    kind = np.dtype(dtype).kind
    value: Any = {"f": math.nan, "b": False}.get(kind)
    if value is None:
        limits = np.iinfo(np.dtype(dtype))
        value = limits.min if kind == "i" else limits.max
    return np.full(shape, value, dtype)


def _npy_header(layout: Layout, rows: int) -> bytes:
    """The header of format version 1.0, as long for any number of rows, so that it can be put in later."""
    _, dtype, shape = layout[0]

    def text(count: int) -> str:
        full = (count, *shape)
        return f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {full}, }}"

    room = 10 + len(text(10**18)) + 1
    total = -(-room // _NPY_ALIGN) * _NPY_ALIGN
    body = text(rows).ljust(total - 11).encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + (total - 10).to_bytes(2, "little") + body
