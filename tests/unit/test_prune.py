"""Masks and specs of pruning: what cannot be kept is refused, and a matrix goes back to its weight."""

import doctest

import numpy as np
import pytest

from optimizers import prune
from optimizers.recipe import RecipeError
from optimizers.spec_shrink import Prune, PruneChannels
from optimizers.tensors import Array


def test_impossible_shares_are_refused() -> None:
    with pytest.raises(prune.PruneError, match="cannot keep 3 of 2"):
        prune.top_k(np.zeros(2), 3)
    with pytest.raises(prune.PruneError, match="not a number"):
        prune.top_k(np.array([1.0, np.nan]), 1)
    with pytest.raises(prune.PruneError, match="does not divide"):
        prune.n_of_m(np.zeros((2, 6)), 2, 4)
    with pytest.raises(RecipeError, match=r"prune\.n:"):
        Prune(pattern="n:m", n=4, m=4)
    with pytest.raises(RecipeError, match="give epochs too"):
        Prune(schedule="polynomial")
    with pytest.raises(RecipeError, match="more than one step"):
        PruneChannels(steps=2)


def test_matrix_and_back() -> None:
    weight: Array = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    np.testing.assert_array_equal(prune.from_matrix(prune.as_matrix(weight), weight.shape), weight)
    assert prune.as_matrix(weight)[0, :3].tolist() == weight[0, :, 0, 0].tolist()


def test_examples_in_the_docstrings_are_true() -> None:
    for module in (prune,):
        result = doctest.testmod(module)
        assert result.attempted > 0 and result.failed == 0
