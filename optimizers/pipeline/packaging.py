"""The last step of every variant: the model as files for the runtime that will serve it."""

from __future__ import annotations

from optimizers.formats.errors import FormError
from optimizers.formats.forms import FORMS, convert
from optimizers.formats.onnx_slim import slim
from optimizers.formats.packed import Packed
from optimizers.formats.tensorrt import pack_engine
from optimizers.formats.torch_program import pack_program
from optimizers.pipeline.recipe import Variant
from optimizers.runner import RUNTIMES, runtime_module
from optimizers.task import Task, TaskModel


def pack(model: TaskModel, variant: Variant, task: Task) -> Packed:
    """``model`` packed for the variant's runtime, or for its form's own where it names none.

    Raises :class:`FormError` where the runtime cannot take it, and
    :class:`optimizers.formats.errors.NotAvailable` where the runtime's tools are not on this machine.
    """
    own = FORMS[model.form].runtime if model.form in FORMS else "onnx"
    runtime = variant.runtime or own
    if runtime == "torch":
        return pack_program(model, task, compiled=variant.compile)
    if runtime == "tensorrt":
        return pack_engine(convert(model, "onnx", task), task)
    if runtime in ("onnx", "openvino"):
        model = convert(model, runtime, task)
    elif runtime != own:
        form = getattr(runtime_module(runtime), "FORM", "" if runtime in RUNTIMES else "onnx")
        if not form:
            raise FormError(
                f"runtime: {runtime!r} does not run a model of form {model.form!r}; "
                f"leave runtime out for {own!r}"
            )
        model = convert(model, form, task)
    if model.form == "onnx":
        model = model.becomes(slim(model.value))
    packed = FORMS[model.form].pack(model, task)
    return Packed(runtime, packed.files, {**model.settings, **packed.settings})
