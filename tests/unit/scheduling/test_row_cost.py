"""What a request costs, in rows of usual size."""

from __future__ import annotations

import numpy as np
import pytest

from optimizers.tensors import Tensors, TensorSpec
from router.scheduling.row_cost import MOST_WEIGHT, Weigher

TEXT = (TensorSpec("text", "BYTES", (-1,)),)


def texts(*lengths: int) -> Tensors:
    items = np.empty(len(lengths), dtype=object)
    items[:] = [b"x" * length for length in lengths]
    return {"text": items}


def used(*lengths: int) -> Weigher:
    """A weigher that has seen many texts of these lengths."""
    weigher = Weigher(TEXT)
    for _ in range(400):
        for length in lengths:
            weigher.weigh(texts(length), 1)
    return weigher


def test_rows_of_a_fixed_size_weigh_what_they_are() -> None:
    weigher = Weigher([TensorSpec("x", "FP32", (-1, 64))])
    assert [weigher.weigh({"x": np.zeros((n, 64), np.float32)}, n) for n in (1, 3, 64)] == [1, 3, 64]


def test_a_long_text_weighs_several_usual_ones_and_a_short_one_is_still_a_row() -> None:
    weigher = used(52)
    assert weigher.weigh(texts(52), 1) == 1
    assert weigher.weigh(texts(5), 1) == 1
    assert weigher.weigh(texts(232), 1) == 4  # (232 + 8) / (52 + 8)


def test_the_rows_of_one_request_are_weighed_together() -> None:
    weigher = used(52)
    assert weigher.weigh(texts(52, 52, 52), 3) == 3
    assert weigher.weigh(texts(52, 112), 2) == 3
    assert weigher.weigh(texts(2, 2), 2) == 2


def test_what_is_usual_follows_what_comes() -> None:
    weigher = used(52)
    for _ in range(1_000):
        weigher.weigh(texts(232), 1)
    assert weigher.weigh(texts(232), 1) == 1


def test_an_empty_probe_weighs_its_rows_and_teaches_nothing() -> None:
    weigher = Weigher(TEXT)
    assert weigher.weigh(texts(0, 0), 2) == 2
    assert weigher.shares == []
    weigher.weigh(texts(40), 1)
    assert weigher.weigh(texts(0), 1) == 1
    assert weigher.weigh(texts(88), 1) == 1  # what is usual is not known yet


def test_one_enormous_text_changes_little_of_what_is_usual_and_weighs_no_more_than_16_rows() -> None:
    weigher = used(52)
    assert weigher.weigh(texts(10_000_000), 1) == MOST_WEIGHT
    assert weigher.weigh(texts(10_000_000, 10), 2) == 2 * MOST_WEIGHT
    assert weigher.weigh(texts(232), 1) == 3


def test_a_row_weighs_no_more_than_a_full_batch() -> None:
    weigher = Weigher(TEXT, max_batch=8)
    for _ in range(100):
        weigher.weigh(texts(52), 1)
    assert weigher.weigh(texts(5_000), 1) == 8


def test_a_model_whose_first_request_was_enormous_soon_knows_what_is_usual() -> None:
    weigher = Weigher(TEXT)
    weigher.weigh(texts(10_000_000), 1)
    for _ in range(200):
        weigher.weigh(texts(52), 1)
    assert weigher.weigh(texts(232), 1) == 4


def test_a_sequence_weighs_by_its_open_axis_only() -> None:
    weigher = Weigher([TensorSpec("tokens", "INT32", (-1, -1)), TensorSpec("fixed", "FP32", (-1, 8))])

    def of(length: int) -> Tensors:
        return {"tokens": np.zeros((1, length), np.int32), "fixed": np.zeros((1, 8), np.float32)}

    for _ in range(100):
        weigher.weigh(of(18), 1)
    assert weigher.weigh(of(18), 1) == 1
    assert weigher.weigh(of(78), 1) == 4


def test_the_counts_tell_how_weights_are_spread() -> None:
    weigher = used(52, 52, 52, 232)
    assert len(weigher.shares) == MOST_WEIGHT
    assert weigher.shares[0] == pytest.approx(0.75, abs=0.05)
    assert sum(weigher.shares[1:4]) == pytest.approx(0.25, abs=0.05)
