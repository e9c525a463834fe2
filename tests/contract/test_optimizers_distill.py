"""The distilling passes on a task: same inputs and outputs as the teacher, stored, loaded and true to it."""

from pathlib import Path

import numpy as np
import pytest

from optimizers.artifact import ArtifactMalformed, Manifest, write
from optimizers.formats.errors import PassError, RecipeError
from optimizers.formats.packed import Packed
from optimizers.formats.serialization import pack_rules, pack_tree, unpack_rules, unpack_tree
from optimizers.passes.distill_rules import DistillRules, distill_rules
from optimizers.passes.distill_tree import DistillTree, distill_tree
from optimizers.profile import LatencyProfile, ProfilePoint
from optimizers.runner import DeviceMissing, load
from optimizers.task import Task
from optimizers.tensors import TensorSpec
from tests.support.small_task import INPUTS, OUTPUTS, context, small_task

TREE, RULES = DistillTree(resampled=2000, max_leaves=40), DistillRules(resampled=500, max_rules=6)


@pytest.fixture(scope="module")
def task() -> Task:
    return small_task()


def manifest(packed: Packed) -> Manifest:
    return Manifest(
        model="quarters",
        variant="small",
        runtime=packed.runtime,
        inputs=INPUTS,
        outputs=OUTPUTS,
        metric="accuracy",
        quality={"accuracy": 1.0, "quality_drop": 0.0},
        profile=LatencyProfile((ProfilePoint(1, 1.0, 1.0),)),
        size_bytes=0,
        parameters=0,
        settings=packed.settings,
    )


def test_tree_runs_as_an_artifact_like_its_teacher(task: Task, tmp_path: Path) -> None:
    made = distill_tree(task.model, TREE, context(task))
    packed = pack_tree(made, task)
    runner = load(write(tmp_path, manifest(packed), packed.files))
    test = task.test.inputs
    answer = runner.run(test)
    assert {name: value.dtype.str for name, value in answer.items()} == {"label": "<i8", "scores": "<f4"}
    np.testing.assert_array_equal(answer["label"], answer["scores"].argmax(axis=1))
    np.testing.assert_allclose(answer["scores"].sum(axis=1), 1, rtol=1e-6)
    assert task.fidelity(answer, context(task).teacher(test)) > 0.6
    assert made.notes["interpretability"]["leaves"] == 40
    assert "x" in packed.files["tree.txt"].decode() and "upper left" in packed.files["tree.txt"].decode()


def test_rules_run_as_an_artifact_like_their_teacher(task: Task, tmp_path: Path) -> None:
    made = distill_rules(task.model, RULES, context(task))
    packed = pack_rules(made, task)
    runner = load(write(tmp_path, manifest(packed), packed.files))
    answer = runner.run(task.test.inputs)
    assert task.fidelity(answer, context(task).teacher(task.test.inputs)) > 0.4
    notes = made.notes["interpretability"]
    assert notes["rules"] <= 6 and notes["longest"] <= 4
    assert len(packed.files["rules.txt"].decode().splitlines()) == notes["rules"] + 1


def test_cache_gives_the_same_student_back(task: Task) -> None:
    made = distill_tree(task.model, TREE, context(task))
    again = made.becomes(unpack_tree(pack_tree(made, task), made, task))
    assert pack_tree(again, task) == pack_tree(made, task)
    listed = distill_rules(task.model, RULES, context(task))
    assert unpack_rules(pack_rules(listed, task), listed, task) == listed.value


def test_seed_decides(task: Task) -> None:
    one, same, other = (
        distill_tree(task.model, TREE, context(task, seed=seed)).value.text() for seed in (1, 1, 2)
    )
    assert one == same != other


def test_wrong_device_and_wrong_weights_are_clear_errors(task: Task, tmp_path: Path) -> None:
    packed = pack_tree(distill_tree(task.model, TREE, context(task)), task)
    artifact = write(tmp_path, manifest(packed), packed.files)
    with pytest.raises(DeviceMissing, match="CPU only"):
        load(artifact, device="cuda")
    broken = write(tmp_path, manifest(packed), {**packed.files, "tree.npz": b"PK"})
    with pytest.raises(ArtifactMalformed, match="not a tree"):
        load(broken)


def test_only_a_classifier_of_numbers_can_be_distilled(task: Task) -> None:
    vectors = task.model.__class__("torch", None, INPUTS, (TensorSpec("vector", "FP32", (-1, 3)),))
    with pytest.raises(PassError, match="outputs label and scores"):
        distill_tree(vectors, TREE, context(task))
    text = task.model.__class__("torch", None, (TensorSpec("text", "BYTES", (-1,)),), OUTPUTS)
    with pytest.raises(PassError, match="distill to a smaller network instead"):
        distill_rules(text, RULES, context(task))
    with pytest.raises(RecipeError, match=r"distill_rules\.max_rules"):
        DistillRules(max_rules=0)
