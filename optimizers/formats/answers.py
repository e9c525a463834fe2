"""What a torch module gives, in whatever structure its authors chose, as the tensors that a model names.

A tensor, a tuple or a list is taken in order; a mapping, a named tuple or a dataclass (such as the
outputs of the transformers library) by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from optimizers.formats.errors import FormError


def tensors(answer: Any, names: Sequence[str]) -> tuple[Any, ...]:
    """One tensor for each of ``names``. Raises :class:`FormError` where the answer has no such tensors."""
    named = _named(answer)
    if named is not None and set(names) <= set(named):
        values = tuple(named[name] for name in names)
    elif named is not None and not isinstance(answer, tuple) and (len(named), len(names)) != (1, 1):
        raise FormError(
            f"the module gives {sorted(named)}, the model's outputs are {list(names)}: name the outputs "
            "after those, or let forward return tensors in the order of the outputs"
        )
    elif named is not None:
        values = tuple(named.values())
    else:
        values = tuple(answer) if isinstance(answer, tuple | list) else (answer,)
    if len(values) != len(names) or not all(_is_tensor(value) for value in values):
        raise FormError(
            f"the module gives {_describe(answer)}, the model's outputs are {list(names)}: let forward "
            "return one tensor per output"
        )
    return values


def logits(answer: Any) -> Any:
    """The tensor of a classifier's answer: the only one, or the one named ``logits``.

    Raises :class:`FormError` where there is no such tensor.
    """
    named = _named(answer)
    if named is not None and "logits" in named:
        answer = named["logits"]
    elif named is not None and len(named) == 1:
        (answer,) = named.values()
    elif isinstance(answer, tuple | list) and len(answer) == 1:
        answer = answer[0]
    if not _is_tensor(answer):
        raise FormError(
            f"a classifier gives logits [rows, classes], the module gives {_describe(answer)}: let forward "
            "return one tensor, or name it logits"
        )
    return answer


def every(answer: Any) -> list[Any]:
    """All tensors of an answer, by name or in order; what a mapping or a sequence nests is left out."""
    named = _named(answer)
    if named is not None:
        found = list(named.values())
    else:
        found = list(answer) if isinstance(answer, tuple | list) else [answer]
    return [value for value in found if _is_tensor(value)]


def _named(answer: Any) -> dict[str, Any] | None:
    """The members of an answer that has names, without those that are None; None for any other."""
    if isinstance(answer, Mapping):
        found = dict(answer)
    elif dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        found = {f.name: getattr(answer, f.name) for f in dataclasses.fields(answer)}
    elif isinstance(answer, tuple) and hasattr(answer, "_fields"):
        found = dict(zip(answer._fields, answer, strict=True))
    else:
        return None
    return {str(name): value for name, value in found.items() if value is not None}


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _describe(answer: Any) -> str:
    named = _named(answer)
    if named is not None:
        return f"a {type(answer).__name__} of {sorted(named)}"
    if isinstance(answer, tuple | list):
        return f"a {type(answer).__name__} of {[type(value).__name__ for value in answer]}"
    return f"a {type(answer).__name__}"
