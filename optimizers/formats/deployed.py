"""The torch module that gives a model's outputs as its specs name them, and real inputs to trace it with."""

from __future__ import annotations

from typing import Any

from optimizers.formats import answers
from optimizers.formats.errors import FormError
from optimizers.task import Task, TaskModel
from optimizers.tensors import Tensors


def deployed(model: TaskModel) -> Any:
    """The ``nn.Module`` that gives the model's outputs in order, as a tuple: the value with its head on.

    Takes and gives float32 whatever the type of the weights. A forward raises :class:`FormError` where
    the module's answer does not hold the outputs.
    """
    import torch

    network, head = model.value, model.head
    names = [spec.name for spec in model.outputs]
    if head not in ("", "classifier"):
        raise FormError(f"unknown head {head!r}; known: 'classifier'")
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)

    class Deployed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            given = (x.to(dtype) if x.is_floating_point() and x.dtype != dtype else x for x in inputs)
            answer = self.network(*given)
            if head == "classifier":
                scores = answers.logits(answer).float()
                return torch.argmax(scores, dim=1), torch.softmax(scores, dim=1)
            found = answers.tensors(answer, names)
            return tuple(a.float() if a.is_floating_point() else a for a in found)

    return Deployed().eval()


def example_inputs(task: Task, rows: int = 2) -> Tensors:
    """Real network inputs, to trace with. Two rows: one would let a tracer take the size for fixed."""
    return task.network_inputs(task.train.take(rows).inputs)
