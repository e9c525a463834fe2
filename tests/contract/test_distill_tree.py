"""Trees: they answer as their teacher does, are stored without code, and read well."""

import doctest
from pathlib import Path

import numpy as np
import pytest

from optimizers.passes import tree_fitting
from optimizers.passes.tree_fitting import fidelity, fit_tree, resample, to_tree
from optimizers.runtimes import decision_tree
from optimizers.runtimes.decision_tree import Feature, Tree, TreeError, name_features, simplest_between, snap
from optimizers.runtimes.trees import TreeRunner, read_tree, tree_bytes
from optimizers.tensors import Array, TensorSpec

WORKED_ROWS, WORKED_ANSWERS = [[1, 2], [3, 4], [5, 6], [7, 8]], [0, 1, 0, 1]


@pytest.fixture(scope="module")
def tree() -> Tree:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(300, 5)).astype(np.float32)
    return fit_tree(rows, (rows[:, 0] * rows[:, 1] > 0) + (rows[:, 2] > 0.5), classes=["a", "b", "c"])


def test_worked_example_is_answered_alike() -> None:
    tree = fit_tree(WORKED_ROWS, WORKED_ANSWERS)
    assert tree.classify(np.array(WORKED_ROWS)).tolist() == WORKED_ANSWERS
    assert tree.leaves == 4


def test_few_rows_and_many_rows_take_the_same_way(tree: Tree) -> None:
    rows = np.random.default_rng(1).normal(size=(500, 5)).astype(np.float32)
    rows[7, 2] = np.nan
    alone = np.concatenate([tree.apply(rows[i : i + 1]) for i in range(len(rows))])
    np.testing.assert_array_equal(alone, tree.apply(rows))


def test_bounds_are_kept(tree: Tree) -> None:
    rng = np.random.default_rng(0)
    rows, answers = rng.normal(size=(400, 3)), rng.integers(0, 2, 400)
    assert fit_tree(rows, answers, max_leaves=7).leaves == 7
    assert fit_tree(rows, answers, max_depth=3).depth == 3
    small = fit_tree(rows, answers, min_leaf=20)
    assert np.bincount(small.apply(rows))[small.feature < 0].min() >= 20
    assert tree.depth > 3


def test_class_that_never_occurs_keeps_its_place() -> None:
    tree = fit_tree([[0.0], [1.0]], [0, 2], classes=["x", "y", "z"])
    np.testing.assert_array_equal(tree.predict(np.array([[0.0], [1.0]])), [[1, 0, 0], [0, 0, 1]])


def test_resampled_rows_hold_values_and_levels_that_occur() -> None:
    rng = np.random.default_rng(0)
    level = rng.integers(3, size=50)
    rows = np.column_stack([rng.integers(10, size=50), np.eye(3)[level]]).astype(np.float32)
    features = [Feature("age"), *(Feature("carrier", level=v) for v in ("AA", "UA", "DL"))]
    more = resample(rows, 3000, rng, features)
    assert more.shape == (3000, 4) and more.dtype == np.float32
    assert set(np.unique(more[:, 0])) <= set(np.unique(rows[:, 0]))
    np.testing.assert_array_equal(more[:, 1:].sum(axis=1), 1)
    assert len(np.unique(more, axis=0)) > len(np.unique(rows, axis=0))


def test_resampling_makes_the_tree_truer_to_its_teacher() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(120, 4)).astype(np.float32)
    fresh = rng.normal(size=(4000, 4)).astype(np.float32)

    def teacher(table: Array) -> Array:
        return np.where(np.square(table).sum(axis=1) > 3.5, 1, 0)

    agree = [
        fidelity(
            to_tree(teacher, rows, np.random.default_rng(1), resampled=n).classify(fresh), teacher(fresh)
        )
        for n in (0, 20_000)
    ]
    assert agree[1] > agree[0] + 0.05


def test_same_seed_same_tree() -> None:
    rows = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)

    def teacher(table: Array) -> Array:
        return np.where(table[:, 0] > table[:, 1], 1, 0)

    first, second = (
        tree_bytes(to_tree(teacher, rows, np.random.default_rng(9), resampled=500)) for _ in range(2)
    )
    assert first == second


def test_text_names_features_units_and_classes() -> None:
    features = [Feature.parse("departure delay [min]"), Feature.parse("carrier=UA")]
    tree = fit_tree(
        [[5, 0], [5, 1], [20, 0], [20, 1]], [0, 0, 0, 1], features=features, classes=["ok", "late"]
    )
    text = tree.text()
    assert "departure delay > 10 min" in text and "carrier is not UA: ok (100%)" in text
    assert "late (100%)" in text and text.endswith("\n")
    assert "more below" in tree.text(max_depth=1)


def test_threshold_reads_well_and_still_separates() -> None:
    assert snap(14, 15, whole=True) == 14 and snap(14, 40, whole=True) == 20
    low, high = np.nextafter(np.float32(1), np.float32(2)), np.nextafter(np.float32(1.0000002), np.float32(2))
    tree = fit_tree([[low], [high]], [0, 1])
    assert tree.classify(np.array([[low], [high]], dtype=np.float32)).tolist() == [0, 1]
    assert simplest_between(-3.5, -3.2) == -3.3


def test_stored_tree_is_the_same_tree(tree: Tree) -> None:
    again = read_tree(tree_bytes(tree))
    rows = np.random.default_rng(2).normal(size=(50, 5)).astype(np.float32)
    np.testing.assert_array_equal(again.predict(rows), tree.predict(rows))
    assert again.features == tree.features and again.text() == tree.text()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off"])
def test_damaged_tree_is_a_clear_error(content: bytes) -> None:
    with pytest.raises(TreeError, match="not a tree"):
        read_tree(content)


def test_pickled_array_is_refused(tree: Tree, tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", names=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(TreeError, match="pickle"):
        read_tree((tmp_path / "t.npz").read_bytes())


def test_tree_that_walks_in_a_circle_is_refused() -> None:
    with pytest.raises(TreeError, match="after their parent"):
        Tree(
            np.array([0], dtype=np.int32),
            np.zeros(1, dtype=np.float32),
            np.array([[0, 0]], dtype=np.int32),
            np.ones((1, 1), dtype=np.float32),
            name_features(1),
            ("a",),
        )


def test_wrong_shapes_are_clear_errors(tree: Tree) -> None:
    with pytest.raises(TreeError, match="rows of 4 values, where the model has 5 features"):
        tree.predict(np.zeros((2, 4), dtype=np.float32))
    with pytest.raises(TreeError, match="one class index per row"):
        fit_tree([[1.0], [2.0]], [0])
    with pytest.raises(TreeError, match="3 feature names for 2 columns"):
        name_features(2, ["a", "b", "c"])


def test_runner_flattens_and_gives_both_outputs() -> None:
    tree = fit_tree(np.eye(4), [0, 1, 2, 1], classes=["a", "b", "c"])
    image = (TensorSpec("image", "FP32", (-1, 1, 2, 2)),)
    outputs = (TensorSpec("label", "INT64", (-1,)), TensorSpec("scores", "FP32", (-1, 3)))
    runner = TreeRunner(tree, image, outputs)
    batch = {"image": np.eye(4, dtype=np.float32).reshape(4, 1, 2, 2)}
    answer = runner.run(batch)
    assert answer["label"].dtype == np.int64 and answer["label"].tolist() == [0, 1, 2, 1]
    assert answer["scores"].dtype == np.float32 and answer["scores"].shape == (4, 3)
    for row in range(4):
        alone = runner.run({"image": batch["image"][row : row + 1]})
        np.testing.assert_array_equal(alone["scores"][0], answer["scores"][row])
    with pytest.raises(TreeError, match="BYTES"):
        TreeRunner(tree, image, (TensorSpec("name", "BYTES", (-1,)),))


def test_examples_in_the_docstrings_are_true() -> None:
    for module in (
        tree_fitting,
        decision_tree,
    ):
        result = doctest.testmod(module)
        assert result.attempted > 0 and result.failed == 0
