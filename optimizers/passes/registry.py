"""From a spec to the code that carries it out, and from a form of model to how it is stored.

A pass is a function ``(model, spec, context) -> model``. It takes one of the forms that its entry
lists (the pipeline converts to the first where the model has another) and leaves its argument as it
was. Everything is named by ``module:function`` and imported when first used, so that a recipe
without torch passes never imports torch passes' libraries.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from optimizers.artifact import ArtifactError, Setting
from optimizers.pipeline.recipe import PassSpec, RecipeError
from optimizers.runner import RunnerError
from optimizers.task import Context, Model, Task


class PassError(RuntimeError):
    """A pass that cannot be applied to this model. The message says which, why, and what would do.

    ::

        PassError
        |- NotAvailable     needs a package or a device that is not on this machine: the variant is skipped
        |- FormError        the model cannot be brought into the form that the pass takes
    """


class NotAvailable(PassError):
    """A package or a device is not here; nothing is wrong with the recipe. The variant is skipped."""


class FormError(PassError):
    """There is no way from the model's form to one that is needed."""


@contextmanager
def typed(what: str, advice: str = "") -> Iterator[None]:
    """What a library raises inside becomes a :class:`PassError`: ``what`` failed, why, what would do."""
    try:
        yield
    except (PassError, RecipeError, ArtifactError, RunnerError):
        raise
    except ModuleNotFoundError as error:
        raise NotAvailable(f"{what} needs the Python package {error.name!r}") from error
    except Exception as error:  # libraries have no common base for what they raise
        raise PassError(f"{what}: {said(error)}{f'; {advice}' if advice else ''}") from error


def said(error: BaseException) -> str:
    """What an exception says, as one line that can stand in a sentence."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+ .*?\) (?=[A-Z])", "", text)
    text = " ".join(text.split())
    shown = text if len(text) <= _MOST_SAID else text[:_MOST_SAID] + " ..."
    return f"{type(error).__name__}: {shown}" if shown else type(error).__name__


@dataclass(frozen=True)
class Packed:
    """A model as files: ``runtime`` to run it, ``files`` by name, ``settings`` for the manifest.

    ``settings["weights"]`` names the main file, whose size is the variant's size unless
    ``settings`` says otherwise through ``weights_data``, a second file that counts too.
    """

    runtime: str
    files: Mapping[str, bytes]
    settings: Mapping[str, Setting]


#: Characters of a library's message that are shown; a compiler's may be pages.
_MOST_SAID = 400

#: kind of spec -> (forms it takes, first preferred; ``module:function`` of the pass).
PASSES: dict[str, tuple[tuple[str, ...], str]] = {
    "quantize_static": (("onnx", "openvino"), "optimizers.passes.quantize:static"),
    "quantize_dynamic": (("onnx",), "optimizers.passes.quantize:dynamic"),
    "quantize_weights": (("onnx",), "optimizers.passes.quantize:weights_only"),
    "quantize_aware": (("torch",), "optimizers.passes.quantize_aware:train"),
    "cast": (("torch", "onnx", "openvino"), "optimizers.passes.cast:cast"),
    "import_onnx": (("torch", "onnx", "sklearn", "openvino"), "optimizers.formats.onnx:import_onnx"),
    "group_by_length": (("torch", "onnx", "openvino"), "optimizers.passes.grouping:group_by_length"),
    "fine_tune": (("torch",), "optimizers.passes.training:fine_tune_pass"),
    "prune": (("torch",), "optimizers.passes.prune_weights:weights"),
    "prune_channels": (("torch",), "optimizers.passes.prune_channels:channels"),
    "cluster": (("torch", "onnx"), "optimizers.passes.cluster:cluster"),
    "distill_network": (("torch", "onnx", "sklearn"), "optimizers.passes.distill_network:network"),
    "distill_tree": (("torch", "onnx", "sklearn"), "optimizers.passes.distill:tree"),
    "distill_rules": (("torch", "onnx", "sklearn"), "optimizers.passes.distill:rules"),
}

#: form -> (runtime by default, ``pack(model, task) -> Packed``, ``unpack(packed, model, task) -> value``).
#: ``unpack`` inverts ``pack`` for the cache: ``model`` is the stored model without its value.
FORMS: dict[str, tuple[str, str, str]] = {
    "torch": (
        "onnx",
        "optimizers.formats.serialization:pack_torch",
        "optimizers.formats.serialization:unpack_torch",
    ),
    "onnx": (
        "onnx",
        "optimizers.formats.serialization:pack_onnx",
        "optimizers.formats.serialization:unpack_onnx",
    ),
    "openvino": (
        "openvino",
        "optimizers.formats.serialization:pack_openvino",
        "optimizers.formats.serialization:unpack_openvino",
    ),
    "tree": ("trees", "optimizers.passes.distill:pack_tree", "optimizers.passes.distill:unpack_tree"),
    "rules": ("rules", "optimizers.passes.distill:pack_rules", "optimizers.passes.distill:unpack_rules"),
}

#: (from, to) -> ``convert(model, task) -> model``.
CONVERSIONS: dict[tuple[str, str], str] = {
    ("torch", "onnx"): "optimizers.formats.convert:torch_to_onnx",
    ("torch", "openvino"): "optimizers.formats.convert:torch_to_openvino",
    ("sklearn", "onnx"): "optimizers.formats.convert:sklearn_to_onnx",
    ("onnx", "openvino"): "optimizers.formats.convert:onnx_to_openvino",
}


def resolve(name: str) -> Any:
    """The object that ``module:attribute`` names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def apply(model: Model, spec: PassSpec, context: Context) -> Model:
    """One pass, with the conversion that it needs before it."""
    forms, name = PASSES[spec.kind]
    wanted = getattr(spec, "engine", None)
    if wanted in forms:
        forms = (wanted,)
    if model.form not in forms:
        model = convert(model, forms[0], context.task)
    result: Model = resolve(name)(model, spec, context)
    return result


def convert(model: Model, form: str, task: Task) -> Model:
    """``model`` in another form, by one conversion or two (sklearn -> onnx -> openvino)."""
    if model.form == form:
        return model
    direct = CONVERSIONS.get((model.form, form))
    if direct:
        with typed(f"the model cannot be converted from {model.form} to {form}"):
            converted: Model = resolve(direct)(model, task)
        return converted
    if (model.form, "onnx") in CONVERSIONS and ("onnx", form) in CONVERSIONS:
        return convert(convert(model, "onnx", task), form, task)
    raise FormError(
        f"a model of form {model.form!r} cannot become {form!r}; known conversions: "
        + ", ".join(f"{a} -> {b}" for a, b in sorted(CONVERSIONS))
    )
