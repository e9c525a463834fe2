"""Clustering: few shared values, a small file, and the runtime unpacks just what was packed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import numpy_helper

from optimizers.cluster import cluster
from optimizers.code_book import cluster_values, pack_pairs
from optimizers.passes import PassError, convert
from optimizers.prune_weights import weights
from optimizers.spec_shrink import Cluster, Prune
from optimizers.task import Model, Task
from optimizers.tensors import Array
from tests.small_task import context, quality, small_task

VALUES = arrays(np.float32, st.integers(1, 200), elements=st.floats(-100, 100, width=32))


@pytest.fixture(scope="module")
def task() -> Task:
    return small_task()


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


def stored_bytes(model: Model) -> int:
    return sum(numpy_helper.to_array(i).nbytes for i in model.value.graph.initializer)


@pytest.mark.parametrize(("clusters", "smaller"), [(32, 2.0), (16, 2.8)])
def test_file_shrinks_and_the_runtime_unpacks_it(task: Task, clusters: int, smaller: float) -> None:
    plain = convert(task.model, "onnx", task)
    small = cluster(task.model, Cluster(clusters=clusters), context(task))
    assert small.form == "onnx" and stored_bytes(plain) / stored_bytes(small) > smaller
    assert quality(small, task) > quality(task.model, task) - 0.05
    assert small.notes["parameters"] == sum(
        numpy_helper.to_array(i).size for i in plain.value.graph.initializer
    )
    books = small.notes["structure"]["code_books"]
    assert books and all(book["values"] <= clusters for book in books.values())


def test_training_lets_few_values_do_more(task: Task) -> None:
    at_once = cluster(task.model, Cluster(clusters=2), context(task))
    trained = cluster(task.model, Cluster(clusters=2, epochs=4, learning_rate=5e-3), context(task))
    assert quality(trained, task) > quality(at_once, task)
    assert all(b["error"] == 0 for b in trained.notes["structure"]["code_books"].values()), "still shared"


def test_pruned_then_clustered_is_still_pruned(task: Task) -> None:
    pruned = weights(task.model, Prune(sparsity=0.5, scope="layer"), context(task))
    small = cluster(pruned, Cluster(clusters=16), context(task))
    assert small.notes["sparsity"] == pytest.approx(0.5, abs=0.01)


def test_what_cannot_be_clustered_is_a_clear_error(task: Task) -> None:
    with pytest.raises(PassError, match="lower least"):
        cluster(task.model, Cluster(least=10**6), context(task))
    onnx = convert(task.model, "onnx", task)
    with pytest.raises(PassError, match="trained in torch"):
        cluster(onnx, Cluster(epochs=1), context(task))
    with pytest.raises(ValueError, match="not finite"):
        cluster_values(np.array([1.0, np.inf]), 2)
