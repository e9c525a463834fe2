"""Handwritten digits: 1,797 real 8x8 images from scikit-learn, and a small convolutional network.

``python -m optimizers.examples.digits [--out artifacts/digits]`` makes every variant of
``configs/recipes/digits.yaml``; :func:`build` makes just those that are asked for.

Input ``image`` FP32 [-1, 1, 8, 8] with values 0 to 1: the data set's grey levels 0 to 16 divided by
16. Outputs ``label`` INT64 [-1] (0 to 9) and ``scores`` FP32 [-1, 10] (probabilities).

Data: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits" (UCI, CC BY 4.0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimizers.artifact import Artifact
from optimizers.examples.common import command_line, digest_of, recipe_path, trained
from optimizers.pipeline import pipeline, recipe_file
from optimizers.task import Dataset, Metric, Task, TaskModel, accuracy, label_agreement
from optimizers.tensors import Array, TensorSpec

INPUTS = (TensorSpec("image", "FP32", (-1, 1, 8, 8)),)
OUTPUTS = (TensorSpec("label", "INT64", (-1,)), TensorSpec("scores", "FP32", (-1, 10)))
SEED = 0
EPOCHS = 14
WIDTHS = (32, 48, 96)

#: The three that the router's demo serves.
DEMO_VARIANTS = ("float32", "int8", "tree")


def splits() -> tuple[Dataset, Dataset, Dataset]:
    """Training (1,257), validation (180) and test (360) images, shuffled by a fixed seed."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = (raw.images / 16.0).astype(np.float32)[:, None]
    labels = raw.target.astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(labels))
    data = Dataset({"image": images[order]}, labels[order])
    return data.slice(0, 1257), data.slice(1257, 1437), data.slice(1437, 1797)


def test_split() -> tuple[Array, Array]:
    """The 360 images that no variant was trained on, FP32 [360, 1, 8, 8], and their labels INT64 [360]."""
    test = splits()[2]
    assert test.targets is not None
    return test.inputs["image"], test.targets


def network(widths: Sequence[int] = WIDTHS) -> Any:
    """An untrained network: three convolutions and one linear layer, about 60,000 weights; gives logits."""
    import torch
    from torch import nn

    a, b, c = widths
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return nn.Sequential(
            nn.Conv2d(1, a, 3, padding=1, bias=False),
            nn.BatchNorm2d(a),
            nn.ReLU(),
            nn.Conv2d(a, b, 3, padding=1, bias=False),
            nn.BatchNorm2d(b),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(b, c, 3, padding=1, bias=False),
            nn.BatchNorm2d(c),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(c * 4, 10),
        )


def task(workdir: Path, progress: Callable[[str], None] = lambda message: None) -> Task:
    """The trained network with its data; the weights are kept in ``workdir``."""
    train, validation, test = splits()
    source = Path(__file__).read_text(encoding="utf-8")
    digest = digest_of("digits", source, train, validation, test)

    def learn(module: Any) -> Any:
        from optimizers.passes.training import fit, torch_threads

        with torch_threads(1):
            return fit(
                module,
                train,
                epochs=EPOCHS,
                learning_rate=5e-3,
                seed=SEED,
                augment=_shift,
                progress=lambda epoch, loss: progress(
                    f"training: epoch {epoch + 1}/{EPOCHS}, loss {loss:.3f}"
                ),
            )

    return Task(
        name="digits",
        model=TaskModel(
            "torch", trained(workdir, digest, network, learn), INPUTS, OUTPUTS, head="classifier"
        ),
        train=train,
        validation=validation,
        test=test,
        metric=Metric("accuracy", accuracy),
        fidelity=label_agreement,
        digest=digest,
        architectures={
            "original": network,
            "small": lambda: network((8, 12, 16)),
        },
        feature_names=tuple(f"row {r} column {c}" for r in range(8) for c in range(8)),
        class_names=tuple(str(d) for d in range(10)),
    )


def _shift(inputs: list[Any], generator: Any) -> list[Any]:
    """The batch moved by up to one pixel each way, at random: digits are not always centred."""
    import torch

    (images,) = inputs
    down, right = torch.randint(-1, 2, (2,), generator=generator).tolist()
    return [torch.roll(images, (down, right), dims=(2, 3))]


def build(
    out: Path,
    *,
    variants: Sequence[str] | None = DEMO_VARIANTS,
    report: bool = False,
    progress: pipeline.Progress | None = None,
) -> dict[str, Artifact]:
    """Make ``variants`` (None: all of the recipe) under ``out``, or take them from there if made before.

    ``progress`` gets the variant's name (empty: preparation) and what is being done.
    """
    recipe = recipe_file.read(recipe_path("digits"))
    return dict(pipeline.run(recipe, out, only=variants, report=report, progress=progress).artifacts)


if __name__ == "__main__":
    command_line("digits")
