"""What a request costs, in rows of usual size. Pure.

A profile counts rows. Where an input's size is open (texts, sequences), a long row runs for several short
ones, and a batch that it is in runs late with all who are in it. Such a row counts as several: when an
answer is predicted, when a batch is formed, and when the profile learns from the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from optimizers.tensors import Array, Tensors, TensorSpec

#: What every row costs beside its content, in bytes of it: about the two tokens around each text.
_FRAME_BYTES = 8.0
#: How fast the usual size follows, after the first few requests.
_GAIN = 0.01
#: No row weighs more. A tokenizer cuts what is much longer, so that it costs no more than this either.
MOST_WEIGHT = 16
#: A long text is rare: weights are counted over so many requests, and over half of those before.
_COUNTED = 1_000


class Weigher:
    """Weighs the requests of one model, and learns from them what is usual.

    The usual size is a geometric mean: one request of megabytes must not make all others small.
    """

    def __init__(self, specs: Sequence[TensorSpec], max_batch: int = MOST_WEIGHT) -> None:
        self._open = [spec for spec in specs if spec.datatype == "BYTES" or -1 in spec.shape[1:]]
        self.resize(max_batch)
        self._log_usual, self._seen = math.log(_FRAME_BYTES), 0
        self._counts, self._counted = [0.0] * MOST_WEIGHT, 0

    def resize(self, max_batch: int) -> None:
        """No row weighs more than a full batch."""
        self._most = float(min(MOST_WEIGHT, max_batch))

    def weigh(self, inputs: Tensors, rows: int) -> int:
        """The weight of a request of ``rows`` rows: at least that many, and for each of them
        at most 16, or a full batch."""
        if not self._open:
            return rows
        each = sum(_size(inputs[spec.name], spec) for spec in self._open) / rows
        log_size = math.log(each + _FRAME_BYTES)
        if each > 0.0:  # else it says nothing of what is usual
            self._seen += 1
            self._log_usual += max(_GAIN, 1.0 / self._seen) * (log_size - self._log_usual)
        relative = min(self._most, math.exp(log_size - self._log_usual))
        weight = max(rows, round(rows * relative))
        if each > 0.0:
            self._count(round(weight / rows))
        return weight

    @property
    def shares(self) -> list[float]:
        """Which share of the rows lately had weight 1, 2 and so on; empty where none was weighed."""
        total = sum(self._counts)
        return [count / total for count in self._counts] if total else []

    def _count(self, weight: int) -> None:
        self._counts[weight - 1] += 1.0
        self._counted += 1
        if self._counted == _COUNTED:
            self._counts, self._counted = [count / 2.0 for count in self._counts], 0


def _size(array: Array, spec: TensorSpec) -> int:
    """Bytes of content."""
    return sum(map(len, array.ravel())) if spec.datatype == "BYTES" else array.nbytes
