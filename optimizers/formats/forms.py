"""The forms that a model can have, how each is stored, and the conversions between them.

A form's own libraries are imported when a model of that form is stored or converted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optimizers.formats import convert as conversions
from optimizers.formats import serialization
from optimizers.formats.errors import FormError, typed
from optimizers.formats.packed import Packed
from optimizers.task import Task, TaskModel


@dataclass(frozen=True)
class Form:
    """How models of a form are stored, and the runtime that runs them unless a variant names another.

    ``unpack`` gives the value that ``pack`` stored; its second argument is the model without its value.
    """

    runtime: str
    pack: Callable[[TaskModel, Task], Packed]
    unpack: Callable[[Packed, TaskModel, Task], Any]


FORMS: dict[str, Form] = {
    "torch": Form("onnx", serialization.pack_torch, serialization.unpack_torch),
    "onnx": Form("onnx", serialization.pack_onnx, serialization.unpack_onnx),
    "openvino": Form("openvino", serialization.pack_openvino, serialization.unpack_openvino),
    "tree": Form("trees", serialization.pack_tree, serialization.unpack_tree),
    "rules": Form("rules", serialization.pack_rules, serialization.unpack_rules),
}

#: (from, to) -> the conversion.
CONVERSIONS: dict[tuple[str, str], Callable[[TaskModel, Task], TaskModel]] = {
    ("torch", "onnx"): conversions.torch_to_onnx,
    ("torch", "openvino"): conversions.torch_to_openvino,
    ("sklearn", "onnx"): conversions.sklearn_to_onnx,
    ("onnx", "openvino"): conversions.onnx_to_openvino,
}


def convert(model: TaskModel, form: str, task: Task) -> TaskModel:
    """``model`` in another form, by one conversion or two (sklearn -> onnx -> openvino)."""
    if model.form == form:
        return model
    direct = CONVERSIONS.get((model.form, form))
    if direct:
        with typed(f"the model cannot be converted from {model.form} to {form}"):
            return direct(model, task)
    if (model.form, "onnx") in CONVERSIONS and ("onnx", form) in CONVERSIONS:
        return convert(convert(model, "onnx", task), form, task)
    raise FormError(
        f"a model of form {model.form!r} cannot become {form!r}; known conversions: "
        + ", ".join(f"{a} -> {b}" for a, b in sorted(CONVERSIONS))
    )
