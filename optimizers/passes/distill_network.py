"""The pass ``distill_network``: a smaller network taught by the original's soft answers.

Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (2015): the student learns
the teacher's whole distribution, softened by a temperature, because how wrong classes compare says
more than which class is right. The loop is :func:`optimizers.passes.training.fit`; no library is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from optimizers.formats.errors import PassError
from optimizers.passes.technique import PassSpec, Technique, check_training, within
from optimizers.passes.training import Loss, fit
from optimizers.task import Dataset, PassContext, TaskModel
from optimizers.tensors import Array

#: Rows per call of the teacher.
_TEACHER_ROWS = 512

#: Below this a probability is rounding: keeps the logarithm finite.
_LEAST = 1e-12


@dataclass(frozen=True)
class DistillNetwork(PassSpec):
    """A smaller network that learns from the original's soft answers as well as from the targets.

    ``architecture`` names the student among the task's. The loss is ``weight`` times the divergence
    between both softened by ``temperature``, plus the rest times the ordinary loss.
    """

    kind: ClassVar[str] = "distill_network"
    architecture: str = ""
    temperature: float = 4.0
    weight: float = 0.9
    epochs: int = 20
    learning_rate: float = 2e-3
    batch: int = 64

    def __post_init__(self) -> None:
        within(self, "temperature", 0.1, 100)
        within(self, "weight", 0, 1)
        check_training(self, least_epochs=1)
        if not self.architecture:
            raise self.refusal("architecture", "name the student, one of the task's architectures")


def distill_network(model: TaskModel, spec: DistillNetwork, context: PassContext) -> TaskModel:
    """The task's architecture ``spec.architecture``, trained on the original's scores and the targets.

    Raises :class:`PassError` where the task has no such architecture, no targets, or is no classifier.
    """
    task = context.task
    build = task.architectures.get(spec.architecture)
    if build is None:
        raise PassError(
            f"task {task.name!r} has no architecture {spec.architecture!r}; it has "
            f"{', '.join(sorted(task.architectures)) or 'none'}"
        )
    if task.train.targets is None or "scores" not in {out.name for out in model.outputs}:
        raise PassError(
            "a smaller network learns from a classifier's scores and from targets; one is missing"
        )
    inputs = _network_inputs(context)
    scores = np.concatenate(
        [context.teacher(part.inputs)["scores"] for part in inputs.batches(_TEACHER_ROWS)]
    )
    lesson = np.concatenate([task.train.targets[:, None].astype(np.float32), log_scores(scores)], axis=1)
    student = fit(
        build(),
        Dataset(inputs.inputs, lesson),
        epochs=spec.epochs,
        learning_rate=spec.learning_rate,
        batch=spec.batch,
        seed=context.seed,
        loss=soft_loss(spec.temperature, spec.weight),
        progress=lambda epoch, loss: context.progress(f"epoch {epoch + 1}/{spec.epochs}, loss {loss:.4f}"),
    )
    return TaskModel(
        "torch",
        student,
        model.inputs,
        model.outputs,
        head=task.model.head or "classifier",
        architecture=spec.architecture,
    )


def _network_inputs(context: PassContext) -> Dataset:
    """The training data as the network takes it, preprocessed once for teacher and student."""
    parts = [context.task.network_inputs(p.inputs) for p in context.task.train.batches(_TEACHER_ROWS)]
    return Dataset({name: np.concatenate([p[name] for p in parts]) for name in parts[0]})


def log_scores(scores: Array) -> Array:
    """Logits, up to a constant per row, of probabilities ``[n, classes]``; float32."""
    logits: Array = np.log(np.maximum(scores.astype(np.float64), _LEAST)).astype(np.float32)
    return logits


def soft_loss(temperature: float, weight: float) -> Loss:
    """``weight * T^2 * KL(teacher_T || student_T) + (1 - weight) * cross-entropy``.

    The targets are ``[n, 1 + classes]``: the class, then the teacher's logits. ``T^2`` keeps the
    size of the gradients when T changes (section 2 of the paper).
    """

    def loss(logits: Any, lesson: Any) -> Any:
        import torch.nn.functional as F

        soft = F.kl_div(
            F.log_softmax(logits / temperature, dim=1),
            F.log_softmax(lesson[:, 1:] / temperature, dim=1),
            log_target=True,
            reduction="batchmean",
        )
        hard = F.cross_entropy(logits, lesson[:, 0].long())
        return weight * temperature**2 * soft + (1 - weight) * hard

    return loss


TECHNIQUE = Technique(DistillNetwork, ("torch", "onnx", "sklearn"), distill_network)
