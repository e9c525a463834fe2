"""The last step of every variant: the model as files for the runtime that will serve it."""

from __future__ import annotations

from optimizers.passes.registry import FORMS, FormError, Packed, convert, resolve
from optimizers.pipeline.recipe import Variant
from optimizers.task import Model, Task


def pack(model: Model, variant: Variant, task: Task) -> Packed:
    """``model`` packed for the variant's runtime, or for its form's own where it names none.

    Raises :class:`FormError` where the runtime cannot take it, and
    :class:`optimizers.passes.registry.NotAvailable` where the runtime's tools are not on this machine.
    """
    runtime = variant.runtime or (FORMS[model.form][0] if model.form in FORMS else "onnx")
    if runtime == "torch":
        from optimizers.formats.torch_program import pack_program

        return pack_program(model, task, compiled=variant.compile)
    if runtime == "tensorrt":
        from optimizers.formats.tensorrt import pack_engine

        return pack_engine(convert(model, "onnx", task), task)
    if runtime in ("onnx", "openvino"):
        model = convert(model, runtime, task)
        if runtime == "onnx":
            from optimizers.formats.onnx_slim import slim

            model = model.becomes(slim(model.value))
    elif FORMS[model.form][0] != runtime:
        raise FormError(
            f"runtime: {runtime!r} does not run a model of form {model.form!r}; "
            f"leave runtime out for {FORMS[model.form][0]!r}"
        )
    packed: Packed = resolve(FORMS[model.form][1])(model, task)
    return Packed(packed.runtime, packed.files, {**model.settings, **packed.settings})
