"""Clustering: few shared values, a small file, and the runtime unpacks just what was packed."""

import pytest
from onnx import numpy_helper

from optimizers.formats.errors import PassError
from optimizers.formats.forms import convert
from optimizers.passes.cluster import Cluster, cluster
from optimizers.passes.prune import Prune, prune
from optimizers.task import Task, TaskModel
from tests.support.small_task import context, quality, small_task


@pytest.fixture(scope="module")
def task() -> Task:
    return small_task()


def stored_bytes(model: TaskModel) -> int:
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
    pruned = prune(task.model, Prune(sparsity=0.5, scope="layer"), context(task))
    small = cluster(pruned, Cluster(clusters=16), context(task))
    assert small.notes["sparsity"] == pytest.approx(0.5, abs=0.01)


def test_what_cannot_be_clustered_is_a_clear_error(task: Task) -> None:
    with pytest.raises(PassError, match="lower least"):
        cluster(task.model, Cluster(least=10**6), context(task))
    onnx = convert(task.model, "onnx", task)
    with pytest.raises(PassError, match="trained in torch"):
        cluster(onnx, Cluster(epochs=1), context(task))
