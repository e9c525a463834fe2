"""Clustering of values: each weight gets its nearest, few values come back exactly, zeros stay zero."""

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from optimizers.passes import code_book
from optimizers.passes.code_book import cluster_values, pack_pairs
from optimizers.tensors import Array

VALUES = arrays(np.float32, st.integers(1, 200), elements=st.floats(-100, 100, width=32))


@given(VALUES, st.integers(2, 32))
def test_each_weight_gets_its_nearest_value(weights: Array, count: int) -> None:
    values, indices = cluster_values(weights, count)
    assert len(values) <= count and indices.dtype == np.uint8 and indices.shape == weights.shape
    assert (np.diff(values) > 0).all()
    distance = np.abs(weights[:, None].astype(np.float64) - values)
    chosen = distance[np.arange(len(weights)), indices]
    np.testing.assert_allclose(chosen, distance.min(axis=1), rtol=1e-6, atol=1e-6)


@given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=8, unique=True), st.integers(0, 99))
def test_few_distinct_values_come_back_exactly(distinct: list[float], seed: int) -> None:
    weights = np.random.default_rng(seed).choice(np.array(distinct, dtype=np.float32), size=(5, 8))
    values, indices = cluster_values(weights, 8)
    np.testing.assert_array_equal(values[indices], weights)


def test_error_falls_with_the_number_of_values_and_is_below_equal_steps() -> None:
    weights = np.random.default_rng(0).normal(size=5000).astype(np.float32)

    def error(count: int) -> float:
        values, indices = cluster_values(weights, count)
        return float(np.mean(np.square(values[indices] - weights)))

    errors = [error(count) for count in (2, 4, 8, 16, 32)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(1 - 2 / np.pi, rel=0.05), "two values for a normal: known optimum"
    step = (weights.max() - weights.min()) / 15
    assert errors[3] < 0.5 * np.mean(np.square(np.round(weights / step) * step - weights))


def test_zeros_of_a_pruned_tensor_stay_zero() -> None:
    weights = np.random.default_rng(0).normal(3, 1, size=1000).astype(np.float32)
    weights[::3] = 0
    values, indices = cluster_values(weights, 4)
    assert len(values) == 4 and not values[indices][weights == 0].any()


def test_pairs_unpack_to_the_same_tensor() -> None:
    values = np.linspace(-1, 1, 11, dtype=np.float32)
    indices = np.random.default_rng(0).integers(11, size=(6, 4)).astype(np.uint8)
    table, codes = pack_pairs(values, indices)
    assert codes.nbytes == indices.size // 2
    np.testing.assert_array_equal(table[codes].reshape(6, 4), values[indices])
    with pytest.raises(ValueError, match="half a byte"):
        pack_pairs(values, indices[:1, :3])


def test_what_cannot_be_clustered_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        cluster_values(np.array([1.0, np.inf]), 2)
    with pytest.raises(ValueError, match="from 2 to 256 values"):
        cluster_values(np.zeros(4), 300)


def test_examples_in_the_docstrings_are_true() -> None:
    for module in (code_book,):
        result = doctest.testmod(module)
        assert result.attempted > 0 and result.failed == 0
