"""What a request costs, in rows of usual size. Pure.

A profile counts rows. Where an input's size is open (texts, sequences), a long row runs for several short
ones, and a batch that it is in runs late with all who are in it. Such a row counts as several: when an
answer is predicted, when a batch is formed, and when the profile learns from the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from optimizers.tensors import Array, Tensors, TensorSpec
from router.scheduling.tuning import MOST_ROW_COST, ROW_COSTS_COUNTED, ROW_FRAME_BYTES, ROW_SIZE_GAIN


class RowCost:
    """What the requests of one model cost; it learns from them what size is usual.

    The usual size is a geometric mean: one request of megabytes must not make all others small.
    """

    def __init__(self, specs: Sequence[TensorSpec], max_batch: int = MOST_ROW_COST) -> None:
        self._open = [spec for spec in specs if spec.datatype == "BYTES" or -1 in spec.shape[1:]]
        self.resize(max_batch)
        self._log_usual, self._seen = math.log(ROW_FRAME_BYTES), 0
        self._counts, self._counted = [0.0] * MOST_ROW_COST, 0

    def resize(self, max_batch: int) -> None:
        """No row costs more than a full batch."""
        self._most = float(min(MOST_ROW_COST, max_batch))

    def of_request(self, inputs: Tensors, rows: int) -> int:
        """The cost of a request of ``rows`` rows: at least that many, and for each of them
        at most 16, or a full batch."""
        if not self._open:
            return rows
        each = sum(_size(inputs[spec.name], spec) for spec in self._open) / rows
        log_size = math.log(each + ROW_FRAME_BYTES)
        if each > 0.0:  # else it says nothing of what is usual
            self._seen += 1
            self._log_usual += max(ROW_SIZE_GAIN, 1.0 / self._seen) * (log_size - self._log_usual)
        relative = min(self._most, math.exp(log_size - self._log_usual))
        cost = max(rows, round(rows * relative))
        if each > 0.0:
            self._count(round(cost / rows))
        return cost

    @property
    def shares(self) -> list[float]:
        """Which share of the rows lately cost 1, 2 and so on; empty where none was counted."""
        total = sum(self._counts)
        return [count / total for count in self._counts] if total else []

    def _count(self, cost: int) -> None:
        self._counts[cost - 1] += 1.0
        self._counted += 1
        if self._counted == ROW_COSTS_COUNTED:
            self._counts, self._counted = [count / 2.0 for count in self._counts], 0


def _size(array: Array, spec: TensorSpec) -> int:
    """Bytes of content."""
    return sum(map(len, array.ravel())) if spec.datatype == "BYTES" else array.nbytes
