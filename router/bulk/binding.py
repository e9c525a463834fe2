"""How the columns of a table become a model's inputs, and whether a table begins with their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from optimizers.tensors import TensorSpec
from router.bulk.chunks import feature_shape, is_scalar
from router.bulk.errors import InputError
from router.sdk.codec import ModelInfo

#: From so many columns on, 0, 1, 2, ... are names (as pandas writes them where it has none) and no row.
_COUNTED_COLUMNS = 8
_NUMBER = re.compile(
    r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|nan|inf|infinity)", re.IGNORECASE
)
_TRUTH = re.compile(r"true|false|[01]", re.IGNORECASE)
#: How tables write that a value is missing.
_MISSING = frozenset(("", "na", "n/a", "#n/a", "null", "none", "?", "-"))


@dataclass(frozen=True, slots=True)
class ByName:
    """Each of ``specs`` is the column at its place in ``columns``; other columns are left alone."""

    specs: tuple[TensorSpec, ...]
    columns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Features:
    """All columns in order are the elements of one input's row, to be given ``shape``."""

    spec: TensorSpec
    shape: tuple[int, ...]


Binding = ByName | Features


def bind(columns: Sequence[str] | int, model: ModelInfo) -> Binding:
    """What the columns are to the model: names, or just a number of them where they have none.

    Blanks around a name do not count, nor does its case where no column has it as it is. Raises InputError,
    naming what the model takes and what the file has.
    """
    names = [name.strip() for name in columns] if not isinstance(columns, int) else []
    count = columns if isinstance(columns, int) else len(names)
    if (places := _places(names, model)) is not None:
        return ByName(model.inputs, places)
    if len(model.inputs) == 1:
        spec = model.inputs[0]
        shape = feature_shape(spec, count)
        if shape is not None and (spec.datatype != "BYTES" or count == 1):
            return Features(spec, shape)
    takes = ", ".join(f"{s.name!r} {s.datatype} {list(s.shape)}" for s in model.inputs)
    has = f"{count} columns without names"
    if names and not all(_NUMBER.fullmatch(name) for name in names):
        listed = ", ".join(repr(name) for name in names[:8])
        has = f"{count} columns: {listed}{', ...' if count > 8 else ''}"
    hint = ""
    if len(model.inputs) == 1 and model.inputs[0].datatype != "BYTES":
        hint = ", or as many columns as one row has elements"
    raise InputError(
        f"the file has {has}; model {model.name!r} takes {takes}: name the columns like the inputs{hint}"
    )


def _places(names: Sequence[str], model: ModelInfo) -> tuple[int, ...] | None:
    """The column of each input; None where one has none. Raises InputError for a name that two have."""
    places = []
    for spec in model.inputs:
        matches = [at for at, name in enumerate(names) if name == spec.name]
        matches = matches or [at for at, name in enumerate(names) if name.casefold() == spec.name.casefold()]
        if not matches:
            return None
        if len(matches) > 1:
            columns = " and ".join(str(at + 1) for at in matches)
            raise InputError(f"columns {columns} are both named {spec.name!r}: leave one of them that name")
        places.append(matches[0])
    return tuple(places)


def has_header(first: Sequence[str], model: ModelInfo) -> bool | None:
    """Whether the first line of a table names its columns; None where it may as well be a row."""
    cells = [cell.strip() for cell in first]
    if _places(cells, model) is not None:
        return True
    if len(model.inputs) != 1:
        return None
    value = _TRUTH if model.inputs[0].datatype == "BOOL" else _NUMBER
    values = [value.fullmatch(cell) is not None for cell in cells]
    if _counts(cells):
        return True if len(cells) >= _COUNTED_COLUMNS else None
    if all(values):
        return False
    if model.inputs[0].datatype == "BYTES":
        return None
    missing = [cell.lower() in _MISSING for cell in cells]
    if all(a or b for a, b in zip(values, missing, strict=True)):
        return False  # a row that lacks something
    if any(values) or any(cell for cell, none in zip(cells, missing, strict=True) if none):
        return None
    return True


def _counts(cells: Sequence[str]) -> bool:
    """Whether they are 0, 1, 2, ..., or 1, 2, 3, ... where there are several."""
    plain = [str(number) for number in range(len(cells) + 1)]
    return list(cells) == plain[:-1] or (len(cells) > 1 and list(cells) == plain[1:])


def scalars_only(binding: Binding) -> bool:
    """Whether each cell is one element, so that no cell needs parsing as a list."""
    return isinstance(binding, Features) or all(is_scalar(spec) for spec in binding.specs)
