"""Which colour is the strongest: a model that takes a whole 224x224x3 image and does next to nothing with it.

So what a request costs is what its bytes cost. It is made by `optimizers` like any variant.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from optimizers.artifact import Artifact
from optimizers.examples.common import digest_of, trained
from optimizers.pipeline import pipeline, recipe_file
from optimizers.task import Dataset, Metric, Task, TaskModel, accuracy, label_agreement
from optimizers.tensors import Array, TensorSpec

SHAPE = (3, 224, 224)
INPUTS = (TensorSpec("image", "FP32", (-1, *SHAPE)),)
OUTPUTS = (TensorSpec("label", "INT64", (-1,)), TensorSpec("scores", "FP32", (-1, 3)))


def network() -> Any:
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))


def images(rows: int, seed: int) -> Dataset:
    """Noise with one channel lifted a little; the target is which."""
    rng = np.random.default_rng(seed)
    noise: Array = rng.random((rows, *SHAPE), dtype=np.float32)
    strongest = rng.integers(3, size=rows)
    noise[np.arange(rows), strongest] += np.float32(0.2)
    return Dataset({"image": noise}, strongest.astype(np.int64))


def task(workdir: Path, progress: Callable[[str], None] = lambda message: None) -> Task:
    train, validation, test = images(48, 1), images(16, 2), images(32, 3)
    digest = digest_of("colour", Path(__file__).read_text(encoding="utf-8"))

    def learn(module: Any) -> Any:
        from optimizers.passes.training import fit

        return fit(module, train, epochs=100, learning_rate=0.1, seed=0)

    return Task(
        name="colour",
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
    recipe = recipe_file.read(Path(__file__).with_name("colour.yaml"))
    return pipeline.run(recipe, out, report=False).artifacts["float32"]
