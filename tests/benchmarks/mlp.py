"""A small MLP (64-256-10) on the flattened handwritten digits, made by `optimizers` like any variant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimizers.artifact import Artifact
from optimizers.examples import digits
from optimizers.examples.common import digest_of, trained
from optimizers.pipeline import pipeline, recipe_file
from optimizers.task import Dataset, Metric, Task, TaskModel, accuracy, label_agreement
from optimizers.tensors import TensorSpec

INPUTS = (TensorSpec("x", "FP32", (-1, 64)),)
OUTPUTS = (TensorSpec("label", "INT64", (-1,)), TensorSpec("scores", "FP32", (-1, 10)))


def network() -> Any:
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


def task(workdir: Path, progress: Callable[[str], None] = lambda message: None) -> Task:
    train, validation, test = (
        Dataset({"x": part.inputs["image"].reshape(-1, 64)}, part.targets) for part in digits.splits()
    )
    digest = digest_of("mlp", Path(__file__).read_text(encoding="utf-8"), train, validation, test)

    def learn(module: Any) -> Any:
        from optimizers.passes.training import fit

        return fit(module, train, epochs=10, learning_rate=3e-3, seed=0)

    return Task(
        name="mlp",
        model=TaskModel(
            "torch", trained(workdir, digest, network, learn), INPUTS, OUTPUTS, head="classifier"
        ),
        train=train,
        validation=validation,
        test=test,
        metric=Metric("accuracy", accuracy),
        fidelity=label_agreement,
        digest=digest,
    )


def build(out: Path) -> Artifact:
    """The float32 variant under ``out``, made if it is not there."""
    recipe = recipe_file.read(Path(__file__).with_name("mlp.yaml"))
    return pipeline.run(recipe, out, report=False).artifacts["float32"]
