"""The techniques by the names that recipes use: those of this package, and those of other packages.

Another package adds one through an entry point of the group ``hybrid_router.passes``: its name is the
technique's, its value ``module:TECHNIQUE``, a :class:`optimizers.passes.technique.Technique`.
"""

from __future__ import annotations

from importlib import import_module

from optimizers.files import extensions
from optimizers.files.problems import hint
from optimizers.formats.errors import RecipeError
from optimizers.formats.forms import convert
from optimizers.passes.technique import PassSpec, Technique
from optimizers.task import PassContext, TaskModel

GROUP = "hybrid_router.passes"

#: Name in a recipe -> module with ``TECHNIQUE``.
BUILT_IN: dict[str, str] = {
    "cast": "optimizers.passes.cast",
    "cluster": "optimizers.passes.cluster",
    "distill_network": "optimizers.passes.distill_network",
    "distill_rules": "optimizers.passes.distill_rules",
    "distill_tree": "optimizers.passes.distill_tree",
    "fine_tune": "optimizers.passes.fine_tune",
    "group_by_length": "optimizers.passes.group_by_length",
    "import_onnx": "optimizers.passes.import_onnx",
    "prune": "optimizers.passes.prune",
    "prune_channels": "optimizers.passes.prune_channels",
    "quantize_aware": "optimizers.passes.quantize_aware",
    "quantize_dynamic": "optimizers.passes.quantize_dynamic",
    "quantize_static": "optimizers.passes.quantize_static",
    "quantize_weights": "optimizers.passes.quantize_weights",
}


def kinds() -> tuple[str, ...]:
    """The names of all techniques."""
    return (*BUILT_IN, *extensions.names(GROUP))


def technique(kind: str) -> Technique:
    """The technique of a name. Raises :class:`RecipeError` for one that is unknown or cannot be loaded."""
    if kind in BUILT_IN:
        built_in: Technique = import_module(BUILT_IN[kind]).TECHNIQUE
        return built_in
    try:
        extension = extensions.load(GROUP, kind)
    except extensions.ExtensionError as error:
        raise RecipeError(str(error), kind) from error
    if extension is None:
        raise RecipeError(f"unknown pass; {hint(kind, kinds())}", kind)
    if not isinstance(extension, Technique) or extension.spec.kind != kind:
        raise RecipeError(
            f"the entry point {kind!r} of {GROUP} must name a Technique whose spec has kind = {kind!r}", kind
        )
    return extension


def apply(model: TaskModel, spec: PassSpec, context: PassContext) -> TaskModel:
    """One pass, with the conversion that it needs before it."""
    applied = technique(spec.kind)
    forms = applied.forms
    wanted = getattr(spec, "engine", None)
    if wanted in forms:
        forms = (wanted,)
    if model.form not in forms:
        model = convert(model, forms[0], context.task)
    return applied.apply(model, spec, context)
