"""A classification task that trains in a moment: which quarter of a small image is the brightest."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import nn

from optimizers.formats.in_memory import predictor
from optimizers.passes.training import fit
from optimizers.task import Dataset, Metric, PassContext, Task, TaskModel, accuracy, label_agreement
from optimizers.tensors import TensorSpec

INPUTS = (TensorSpec("image", "FP32", (-1, 1, 8, 8)),)
OUTPUTS = (TensorSpec("label", "INT64", (-1,)), TensorSpec("scores", "FP32", (-1, 4)))


class Branches(nn.Module):
    """A convolution, a residual block, a concatenation and a flattening: all that ties channels."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.inner = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.side = nn.Conv2d(width, width // 2, 1)
        self.joined = nn.Conv2d(width + width // 2, width, 1)
        self.pool = nn.MaxPool2d(4)
        self.head = nn.Linear(width * 4, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(image))
        x = torch.relu(x + self.norm(self.inner(x)))
        x = torch.cat([x, torch.relu(self.side(x))], dim=1)
        return self.head(self.pool(torch.relu(self.joined(x))).flatten(1))  # type: ignore[no-any-return]


def dataset(rows: int, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    images = rng.random((rows, 1, 8, 8), dtype=np.float32)
    quarter = rng.integers(4, size=rows)
    for image, where in zip(images, quarter, strict=True):
        down, right = divmod(int(where), 2)
        image[0, 4 * down : 4 * down + 4, 4 * right : 4 * right + 4] += 0.35
    return Dataset({"image": images}, quarter.astype(np.int64))


@cache
def small_task() -> Task:
    """The trained task; made once, for nothing changes a task."""
    torch.set_num_threads(1)  # layers this small only lose by a second one, most of all on a busy machine
    train = dataset(512, 1)
    module = fit(Branches(), train, epochs=3, learning_rate=5e-3)
    return Task(
        name="quarters",
        model=TaskModel("torch", module, INPUTS, OUTPUTS, head="classifier"),
        train=train,
        validation=dataset(64, 2),
        test=dataset(256, 3),
        metric=Metric("accuracy", accuracy),
        fidelity=label_agreement,
        digest="quarters",
        architectures={"original": Branches, "small": lambda: Branches(6)},
        class_names=("upper left", "upper right", "lower left", "lower right"),
    )


def context(task: Task, seed: int = 0) -> PassContext:
    return PassContext(task, predictor(task.model, task), seed=seed)


def quality(model: TaskModel, task: Task) -> float:
    return task.metric.evaluate(predictor(model, task), task.test)
