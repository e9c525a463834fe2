"""The pass ``import_onnx``: a model that was optimized elsewhere, in the original's place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from optimizers.formats.errors import PassError
from optimizers.formats.graphs import rename_inputs, rename_outputs
from optimizers.formats.onnx import from_onnx
from optimizers.passes.technique import PassSpec, Technique
from optimizers.task import PassContext, TaskModel


@dataclass(frozen=True)
class ImportOnnx(PassSpec):
    """The model in an ONNX ``file`` in the original's place, for one that was optimized elsewhere."""

    kind: ClassVar[str] = "import_onnx"
    file: str = ""

    def __post_init__(self) -> None:
        if not self.file:
            raise self.refusal("file", "name an ONNX file")


def import_onnx(model: TaskModel, spec: ImportOnnx, context: PassContext) -> TaskModel:
    """The model in ``spec.file`` in this one's place. Raises :class:`PassError` where it does not fit it.

    Inputs and outputs must have the same types and shapes in the same order; names may differ.
    """
    found = from_onnx(Path(spec.file))
    for what, ours, theirs in (
        ("inputs", model.inputs, found.inputs),
        ("outputs", model.outputs, found.outputs),
    ):
        if [(s.datatype, s.shape) for s in ours] != [(s.datatype, s.shape) for s in theirs]:
            raise PassError(
                f"{spec.file}: its {what} are {[s.to_json() for s in theirs]}, the original's are "
                f"{[s.to_json() for s in ours]}"
            )
    rename_outputs(found.value, [s.name for s in model.outputs])
    rename_inputs(found.value, [s.name for s in model.inputs])
    return replace(model.becomes(found.value, form="onnx", imported=Path(spec.file).name), head="")


TECHNIQUE = Technique(ImportOnnx, ("torch", "onnx", "sklearn", "openvino"), import_onnx)
