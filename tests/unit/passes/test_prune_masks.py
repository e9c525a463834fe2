"""Masks and specs of pruning: what cannot be kept is refused, and a matrix goes back to its weight."""

import doctest

import numpy as np
import pytest

from optimizers.formats.errors import RecipeError
from optimizers.passes import prune_masks
from optimizers.passes.prune import Prune
from optimizers.passes.prune_channels import PruneChannels
from optimizers.tensors import Array


def test_impossible_shares_are_refused() -> None:
    with pytest.raises(prune_masks.PruneError, match="cannot keep 3 of 2"):
        prune_masks.top_k(np.zeros(2), 3)
    with pytest.raises(prune_masks.PruneError, match="not a number"):
        prune_masks.top_k(np.array([1.0, np.nan]), 1)
    with pytest.raises(prune_masks.PruneError, match="does not divide"):
        prune_masks.n_of_m(np.zeros((2, 6)), 2, 4)
    with pytest.raises(RecipeError, match=r"prune\.n:"):
        Prune(pattern="n:m", n=4, m=4)
    with pytest.raises(RecipeError, match="give epochs too"):
        Prune(schedule="polynomial")
    with pytest.raises(RecipeError, match="more than one step"):
        PruneChannels(steps=2)


def test_matrix_and_back() -> None:
    weight: Array = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    np.testing.assert_array_equal(
        prune_masks.from_matrix(prune_masks.as_matrix(weight), weight.shape), weight
    )
    assert prune_masks.as_matrix(weight)[0, :3].tolist() == weight[0, :, 0, 0].tolist()


def test_examples_in_the_docstrings_are_true() -> None:
    for module in (prune_masks,):
        result = doctest.testmod(module)
        assert result.attempted > 0 and result.failed == 0
