"""Rows as they were read, as batches that the model takes, and as what came back. Values only, no I/O."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from optimizers.tensors import Array, TensorSpec
from router.sdk import codec
from router.sdk.codec import ModelInfo, Tensor
from router.sdk.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that the file does not hold in a readable form, and why."""

    reason: str


Columns = Array | Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class RawChunk:
    """Rows ``start`` to ``start + count`` as read.

    ``rows`` is one array (or one by input name) with the rows on the first axis, or a list with one
    value for each row. ``position`` is the share of the file that lies before the chunk's end.
    """

    start: int
    count: int
    rows: Columns | list[object]
    position: float

    @property
    def stop(self) -> int:
        return self.start + self.count


def share(position: int, size: int) -> float:
    """How much of a file of ``size`` lies before ``position``; all of one that is empty."""
    return min(1.0, position / size) if size else 1.0


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows to send together: their numbers in the file and their tensors."""

    rows: Sequence[int]
    tensors: Sequence[Tensor]

    @property
    def name(self) -> tuple[int, int]:
        """First and last row: no two batches of a run have the same."""
        return self.rows[0], self.rows[-1]

    def inputs(self) -> dict[str, Array]:
        return {tensor.name: tensor.array for tensor in self.tensors}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> RowBatch:
        cut = [Tensor(t.name, t.datatype, t.array[part]) for t in self.tensors]
        return RowBatch(self.rows[part], cut)


@dataclass(frozen=True, slots=True)
class AnsweredRows:
    """Answers to consecutive good rows; ``outputs`` have these rows on their first axis."""

    rows: Sequence[int]
    outputs: Mapping[str, Array]
    variant: str | None


@dataclass(slots=True)
class Settled:
    """A chunk with the fate of each of its rows; ``parts`` and ``failures`` in the order of the rows."""

    start: int
    stop: int
    position: float
    parts: list[AnsweredRows] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)


def arrange(raw: RawChunk, model: ModelInfo) -> tuple[list[RowBatch], list[tuple[int, str]]]:
    """The chunk's rows as batches of equal shapes, and the rows that the model cannot take, with reasons."""
    if not isinstance(raw.rows, list):
        try:
            tensors = codec.arrange(raw.rows, model)
            if all(len(tensor.array) == raw.count for tensor in tensors):
                return [RowBatch(range(raw.start, raw.stop), tensors)], []
        except InvalidRequest:
            pass  # one row at a time tells which
    batches: list[RowBatch] = []
    failures: list[tuple[int, str]] = []
    numbers: list[int] = []
    rows: list[list[Tensor]] = []
    for number, item in enumerate(_each(raw), raw.start):
        try:
            row = _arrange_row(item, model)
        except InvalidRequest as error:
            failures.append((number, str(error)))
            continue
        if rows and not codec.same_shapes(rows[0], row):
            batches.append(RowBatch(numbers, codec.stack(rows)))
            numbers, rows = [], []
        numbers.append(number)
        rows.append(row)
    if rows:
        batches.append(RowBatch(numbers, codec.stack(rows)))
    return batches, failures


def _arrange_row(item: object, model: ModelInfo) -> list[Tensor]:
    if isinstance(item, Unreadable):
        raise InvalidRequest(item.reason)
    return codec.arrange(item, model, sample=True)


def _each(raw: RawChunk) -> Iterator[object]:
    if isinstance(raw.rows, list):
        yield from raw.rows
    elif isinstance(raw.rows, Mapping):
        for index in range(raw.count):
            yield {name: column[index] for name, column in raw.rows.items()}
    else:
        yield from raw.rows


def feature_shape(spec: TensorSpec, features: int) -> tuple[int, ...] | None:
    """The shape of one row of ``spec`` when its elements come as a flat list; None where they do not fit."""
    dims = spec.shape[1:]
    if -1 not in dims:
        return dims if math.prod(dims) == features else None
    known = math.prod(d for d in dims if d != -1)
    if dims.count(-1) != 1 or known == 0 or features % known:
        return None
    return tuple(features // known if d == -1 else d for d in dims)


def is_scalar(spec: TensorSpec) -> bool:
    """Whether one row of ``spec`` is a single value."""
    return all(d == 1 for d in spec.shape[1:])
