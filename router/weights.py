"""What a request costs, in rows of usual size. Pure.

A profile counts rows. Where an input's size is open (texts, sequences), a long row runs for several short
ones, and a batch that it is in runs late with all who are in it. Such a row counts as several: when an
answer is predicted, when a batch is formed, and when the profile learns from the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

from optimizers.tensors import Array, Tensors, TensorSpec

#: What every row costs beside its content, in bytes of it: about the two tokens around each text.
_FRAME_BYTES = 8.0
#: Bytes a row by which the usual size follows, after the first few requests.
_GAIN = 0.01
#: A long text is rare: how weights are spread is counted over ten times as many rows.
_COUNT_GAIN = 0.001
#: The weights that are told apart when they are counted; the last one stands for all above.
MOST_COUNTED = 16


class Weigher:
    """Weighs the requests of one model, and learns from them what is usual.

    ``counts[w - 1]`` is how many of the lately weighed rows had weight ``w``, by an exponential window.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._open = [spec for spec in specs if spec.datatype == "BYTES" or -1 in spec.shape[1:]]
        self._usual_bytes, self._seen = 0.0, 0
        self.counts = [0.0] * MOST_COUNTED

    def weigh(self, inputs: Tensors, rows: int) -> int:
        """The weight of a request of ``rows`` rows: at least that many."""
        if not self._open:
            return rows
        each = sum(_size(inputs[spec.name], spec) for spec in self._open) / rows
        if each > 0.0:  # a probe is empty
            self._seen += 1
            self._usual_bytes += max(_GAIN, 1.0 / self._seen) * (each - self._usual_bytes)
        relative = (each + _FRAME_BYTES) / (self._usual_bytes + _FRAME_BYTES)
        weight = max(rows, round(rows * relative))
        if each > 0.0:
            self._count(weight / rows)
        return weight

    @property
    def shares(self) -> list[float]:
        """Which share of the rows lately had weight 1, 2 and so on; empty where none was weighed."""
        total = sum(self.counts)
        return [count / total for count in self.counts] if total else []

    def _count(self, weight: float) -> None:
        counts = self.counts
        for place, count in enumerate(counts):
            counts[place] = count * (1.0 - _COUNT_GAIN)
        counts[min(MOST_COUNTED, round(weight)) - 1] += _COUNT_GAIN


def _size(array: Array, spec: TensorSpec) -> int:
    """Bytes of content."""
    return sum(map(len, array.ravel())) if spec.datatype == "BYTES" else array.nbytes
