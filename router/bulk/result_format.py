"""What a format of RESULTS must do, and what its outputs look like: name, numpy dtype, row shape.

Every format is written by appending, so that a file can be cut after any chunk and continued.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from optimizers.tensors import Array, TensorSpec
from router.bulk.chunks import AnsweredRows, Settled
from router.bulk.disk import Disk
from router.bulk.errors import BulkError
from router.bulk.ledger import Layout


class ResultFormat(ABC):
    """One format. ``layout`` (name, numpy dtype, row shape) is the same for all rows but in JSON lines."""

    one_layout = True
    spooled = False

    def prologue(self, layout: Layout, start: int) -> Iterator[bytes]:
        """What comes before the first answered chunk, which begins with row ``start``."""
        return iter(())

    @abstractmethod
    def encode(self, chunk: Settled, layout: Layout) -> bytes:
        """The chunk's answers; empty while no row has been answered yet."""

    def finish(  # noqa: B027  # most formats are whole as they were written
        self, disk: Disk, written: Path, target: Path, rows: int, layout: Layout
    ) -> None:
        """Make ``target`` whole from what was ``written``. May be done twice."""


def layout_of(outputs: Mapping[str, Array]) -> Layout:
    return tuple((name, array.dtype.str, array.shape[1:]) for name, array in outputs.items())


def layout_of_specs(outputs: Sequence[TensorSpec]) -> Layout:
    """For a file without any answer; a size that only answers would tell is 0."""
    return tuple((s.name, s.dtype.str, tuple(max(d, 0) for d in s.shape[1:])) for s in outputs)


def require_layout(part: AnsweredRows, layout: Layout) -> None:
    """Raises BulkError for answers that do not line up with those before them."""
    if layout_of(part.outputs) != layout:
        raise BulkError(
            f"row {part.rows[0]} was answered with outputs {_describe(layout_of(part.outputs))}, the rows "
            f"before it with {_describe(layout)}: write such results to .jsonl"
        )


def _describe(layout: Layout) -> str:
    return ", ".join(f"{name} {dtype} {list(shape)}" for name, dtype, shape in layout)
