"""How the columns of a table become a model's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optimizers.tensors import TensorSpec
from router.bulk.chunks import feature_shape, is_scalar
from router.bulk.errors import InputError
from router.client_codec import ModelInfo


@dataclass(frozen=True, slots=True)
class ByName:
    """Each input is a column of its name; other columns are left alone."""

    specs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Features:
    """All columns in order are the elements of one input's row, to be given ``shape``."""

    spec: TensorSpec
    shape: tuple[int, ...]


Binding = ByName | Features


def bind(columns: Sequence[str] | int, model: ModelInfo) -> Binding:
    """What the columns are to the model: names, or just a number of them where they have none.

    Raises InputError, naming what the model takes and what the file has.
    """
    names = columns if not isinstance(columns, int) else ()
    count = columns if isinstance(columns, int) else len(columns)
    if names and {spec.name for spec in model.inputs} <= set(names):
        return ByName(model.inputs)
    if len(model.inputs) == 1:
        spec = model.inputs[0]
        shape = feature_shape(spec, count)
        if shape is not None and (spec.datatype != "BYTES" or count == 1):
            return Features(spec, shape)
    takes = ", ".join(f"{s.name!r} {s.datatype} {list(s.shape)}" for s in model.inputs)
    has = f"{count} columns without names"
    if names:
        shown = ", ".join(repr(name) for name in names[:8])
        has = f"{count} columns: {shown}{', ...' if count > 8 else ''}"
    hint = ""
    if len(model.inputs) == 1 and model.inputs[0].datatype != "BYTES":
        hint = ", or as many columns as one row has elements"
    raise InputError(
        f"the file has {has}; model {model.name!r} takes {takes}: name the columns like the inputs{hint}"
    )


def scalars_only(binding: Binding) -> bool:
    """Whether each cell is one element, so that no cell needs parsing as a list."""
    return isinstance(binding, Features) or all(is_scalar(spec) for spec in binding.specs)
