"""A variant's example row: run to warm the variant up, and to tell a broken model from a bad request.

An artifact keeps a row of its task's data in ``example.tensors`` (the layout of :mod:`optimizers.tensors`).
An artifact without that file is tried with zeros, which not every model takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizers.artifact import Artifact, ArtifactMalformed
from optimizers.runner import Runner, RunnerError
from optimizers.tensors import TensorError, Tensors, TensorSpec, check, pack, rows_of, unpack

FILE = "example.tensors"
#: So many rows tell outputs by row from outputs whose number does not depend on the rows.
_TRIED_ROWS = (1, 3)


class ExampleFails(RunnerError):
    """The variant fails on the example row of its own artifact: it is broken, or does not run here."""


class RowsNotKept(RunnerError):
    """The model does not give one output row for each input row, so its batches cannot be taken apart."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a variant's inputs. ``is_real``: it comes from data, and the variant takes it."""

    row: Tensors
    is_real: bool

    def batch(self, rows: int = 1) -> Tensors:
        """The row, ``rows`` times."""
        return {name: np.repeat(array, rows, axis=0) for name, array in self.row.items()}


def encode(batch: Tensors, specs: Sequence[TensorSpec]) -> bytes:
    """The contents of ``example.tensors``: a row of ``batch``, in the datatypes of ``specs``.

    It is the first of those that have the median size, since what it takes to run stands for others.
    """
    rows = rows_of(batch)
    sizes = np.zeros(rows, np.int64)
    for spec in specs:
        if spec.datatype == "BYTES":
            sizes += [sum(map(len, row)) for row in batch[spec.name].reshape(rows, -1)]
    chosen = int(np.argmax(sizes == np.sort(sizes)[len(sizes) // 2]))
    return pack({s.name: batch[s.name][chosen : chosen + 1].astype(s.dtype, copy=False) for s in specs})


def example_of(artifact: Artifact) -> Example:
    """The artifact's example row, or a row of zeros. Raises `ArtifactMalformed` for a file that is no row."""
    specs = artifact.manifest.inputs
    if FILE not in artifact.manifest.files:
        return Example(zeros(specs), is_real=False)
    path = artifact.file(FILE)
    try:
        row, _ = unpack(path.read_bytes())
        if check(row, specs) != 1:
            raise TensorError(f"it has {rows_of(row)} rows")
    except (OSError, TensorError) as error:
        raise ArtifactMalformed(f"{path}: not one row of the model's inputs: {error}") from None
    return Example(row, is_real=True)


def zeros(specs: Sequence[TensorSpec]) -> Tensors:
    """A row of zeros (empty strings for BYTES); open sizes become 1."""
    row: Tensors = {}
    for spec in specs:
        shape = tuple(1 if size < 0 else size for size in spec.shape)
        fill: Any = b"" if spec.datatype == "BYTES" else 0
        row[spec.name] = np.full(shape, fill, dtype=spec.dtype)
    return row


def run_rows(runner: Runner, batch: Tensors) -> Tensors:
    """``runner.run``. Raises `RowsNotKept` where the outputs have other rows than the batch."""
    rows, outputs = rows_of(batch), runner.run(batch)
    for name, array in outputs.items():
        if array.shape[:1] != (rows,):
            raise RowsNotKept(
                f"output {name!r} has shape {list(array.shape)} for {rows} rows of input, and must have one "
                "row for each: give every row an output of its own in the model, padded where sizes differ"
            )
    return outputs


def try_out(runner: Runner, example: Example) -> bool:
    """Run the example, alone and in a batch. False where the variant does not take a row of zeros.

    Raises `RowsNotKept`, and `ExampleFails` where the variant fails on a real row.
    """
    try:
        for rows in _TRIED_ROWS:
            run_rows(runner, example.batch(rows))
    except RowsNotKept:
        raise
    except Exception as error:  # each runtime raises its own
        if not example.is_real:
            return False
        raise ExampleFails(f"it fails on its own example row: {type(error).__name__}: {error}") from error
    return True
