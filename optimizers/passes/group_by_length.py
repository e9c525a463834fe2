"""The pass ``group_by_length``: a text runtime runs its batches in groups of similar length.

The grouping itself is :mod:`optimizers.runtimes.grouping`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from optimizers.formats.errors import PassError
from optimizers.passes.technique import PassSpec, Technique, within
from optimizers.task import PassContext, TaskModel


@dataclass(frozen=True)
class GroupByLength(PassSpec):
    """Rows of a text batch run in groups of similar length, so that less padding is computed.

    The network stays as it is. A batch is cut where the padding saved is worth another call, which
    costs about as much as ``call_tokens`` tokens.
    """

    kind: ClassVar[str] = "group_by_length"
    call_tokens: int = 32

    def __post_init__(self) -> None:
        within(self, "call_tokens", 1, 1_000_000)


def group_by_length(model: TaskModel, spec: GroupByLength, context: PassContext) -> TaskModel:
    """The model with the setting that its text runtime groups by. Raises PassError without a tokenizer."""
    if context.task.preprocess is None:
        raise PassError("group_by_length is for tasks that take text; this one has no tokenizer")
    return replace(model, settings={**model.settings, "group_call_tokens": spec.call_tokens})


TECHNIQUE = Technique(GroupByLength, ("torch", "onnx", "openvino"), group_by_length)
