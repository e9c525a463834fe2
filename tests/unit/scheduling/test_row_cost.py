"""What a request costs, in rows of usual size."""

from __future__ import annotations

import numpy as np
import pytest

from optimizers.tensors import Tensors, TensorSpec
from router.scheduling.row_cost import RowCost
from router.scheduling.tuning import MOST_ROW_COST

TEXT = (TensorSpec("text", "BYTES", (-1,)),)


def texts(*lengths: int) -> Tensors:
    items = np.empty(len(lengths), dtype=object)
    items[:] = [b"x" * length for length in lengths]
    return {"text": items}


def used(*lengths: int) -> RowCost:
    """A `RowCost` that has seen many texts of these lengths."""
    costs = RowCost(TEXT)
    for _ in range(400):
        for length in lengths:
            costs.of_request(texts(length), 1)
    return costs


def test_rows_of_a_fixed_size_weigh_what_they_are() -> None:
    costs = RowCost([TensorSpec("x", "FP32", (-1, 64))])
    assert [costs.of_request({"x": np.zeros((n, 64), np.float32)}, n) for n in (1, 3, 64)] == [1, 3, 64]


def test_a_long_text_weighs_several_usual_ones_and_a_short_one_is_still_a_row() -> None:
    costs = used(52)
    assert costs.of_request(texts(52), 1) == 1
    assert costs.of_request(texts(5), 1) == 1
    assert costs.of_request(texts(232), 1) == 4  # (232 + 8) / (52 + 8)


def test_the_rows_of_one_request_are_weighed_together() -> None:
    costs = used(52)
    assert costs.of_request(texts(52, 52, 52), 3) == 3
    assert costs.of_request(texts(52, 112), 2) == 3
    assert costs.of_request(texts(2, 2), 2) == 2


def test_what_is_usual_follows_what_comes() -> None:
    costs = used(52)
    for _ in range(1_000):
        costs.of_request(texts(232), 1)
    assert costs.of_request(texts(232), 1) == 1


def test_an_empty_probe_weighs_its_rows_and_teaches_nothing() -> None:
    costs = RowCost(TEXT)
    assert costs.of_request(texts(0, 0), 2) == 2
    assert costs.shares == []
    costs.of_request(texts(40), 1)
    assert costs.of_request(texts(0), 1) == 1
    assert costs.of_request(texts(88), 1) == 1  # what is usual is not known yet


def test_one_enormous_text_changes_little_of_what_is_usual_and_weighs_no_more_than_16_rows() -> None:
    costs = used(52)
    assert costs.of_request(texts(10_000_000), 1) == MOST_ROW_COST
    assert costs.of_request(texts(10_000_000, 10), 2) == 2 * MOST_ROW_COST
    assert costs.of_request(texts(232), 1) == 3


def test_a_row_weighs_no_more_than_a_full_batch() -> None:
    costs = RowCost(TEXT, max_batch=8)
    for _ in range(100):
        costs.of_request(texts(52), 1)
    assert costs.of_request(texts(5_000), 1) == 8


def test_a_model_whose_first_request_was_enormous_soon_knows_what_is_usual() -> None:
    costs = RowCost(TEXT)
    costs.of_request(texts(10_000_000), 1)
    for _ in range(200):
        costs.of_request(texts(52), 1)
    assert costs.of_request(texts(232), 1) == 4


def test_a_sequence_weighs_by_its_open_axis_only() -> None:
    costs = RowCost([TensorSpec("tokens", "INT32", (-1, -1)), TensorSpec("fixed", "FP32", (-1, 8))])

    def of(length: int) -> Tensors:
        return {"tokens": np.zeros((1, length), np.int32), "fixed": np.zeros((1, 8), np.float32)}

    for _ in range(100):
        costs.of_request(of(18), 1)
    assert costs.of_request(of(18), 1) == 1
    assert costs.of_request(of(78), 1) == 4


def test_the_counts_tell_how_weights_are_spread() -> None:
    costs = used(52, 52, 52, 232)
    assert len(costs.shares) == MOST_ROW_COST
    assert costs.shares[0] == pytest.approx(0.75, abs=0.05)
    assert sum(costs.shares[1:4]) == pytest.approx(0.25, abs=0.05)
