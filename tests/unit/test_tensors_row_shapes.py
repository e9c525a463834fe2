"""Which tensors can be joined: the shapes of their rows, read from the header of a message alone."""

from __future__ import annotations

import numpy as np
import pytest

from optimizers.tensors import TensorError, concat, pack, row_shapes


def test_row_shapes_leave_the_number_of_rows_out() -> None:
    batch = {"ids": np.zeros((3, 5), np.int64), "text": np.array([b"a", b"", b"c"], object)}
    assert row_shapes(pack(batch)) == (("ids", (5,)), ("text", ()))
    shorter = pack({name: array[:1] for name, array in batch.items()})
    assert row_shapes(shorter) == row_shapes(pack(batch))
    assert row_shapes(pack({"ids": np.zeros((3, 7), np.int64)})) == (("ids", (7,)),)


@pytest.mark.parametrize(
    "message", [b"", b"not a message", b"\x05\x00\x00\x00[1,2]", b"\xff" * 9, b"\x02\x00\x00\x00{}"]
)
def test_what_is_no_message_has_no_row_shapes(message: bytes) -> None:
    assert row_shapes(message) == ()


def test_rows_that_do_not_fit_together_are_named() -> None:
    batches = [{"ids": np.zeros((1, 5))}, {"ids": np.zeros((2, 7))}]
    with pytest.raises(TensorError, match=r"'ids': rows of the shapes \[5\] and \[7\] cannot be joined"):
        concat(batches)
