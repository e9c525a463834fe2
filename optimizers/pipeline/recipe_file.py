"""Reads a recipe from YAML. Every error says where in the file, what is wrong, and what may stand there.

::

    name: digits
    task: optimizers.examples.digits:task
    variants:
      float32: {}
      int8:
        passes:
          - quantize_static: {calibration: entropy}
        goals: [{figure: quality_drop, at_most: 0.01}]
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from optimizers.artifact import check_name
from optimizers.files.text import TextError, read_text
from optimizers.pipeline.recipe import SPECS, Goal, Latency, PassSpec, Recipe, RecipeError, Search, Variant

T = TypeVar("T")


def read(path: Path) -> Recipe:
    """The recipe in a YAML file. Raises :class:`RecipeError`."""
    try:
        text = read_text(path)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from None
    except TextError as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    try:
        return parse(text)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def parse(text: str) -> Recipe:
    """The recipe in YAML text. Raises :class:`RecipeError`."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none, such as 2024-02-31
        raise RecipeError(f"not YAML: {error}") from None
    except RecursionError:
        raise RecipeError("not a recipe: lists or mappings are nested hundreds deep") from None
    fields = _mapping(value, "recipe", ("name", "task", "variants", "goals", "latency", "seed", "data"))
    for name in ("name", "task", "variants"):
        if name not in fields:
            raise RecipeError(f"{name} is missing")
    task = _typed(fields["task"], str, "task")
    if task.count(":") != 1:
        raise RecipeError(f"task: {task!r} is not module:function, e.g. optimizers.examples.digits:task")
    variants = fields["variants"]
    if not isinstance(variants, Mapping) or not variants:
        raise RecipeError("variants: a mapping of at least one name to its passes and settings")
    return Recipe(
        name=_name(fields["name"], "name"),
        task=task,
        variants=tuple(_variant(_name(n, "variants"), v) for n, v in variants.items()),
        goals=_goals(fields.get("goals", []), "goals"),
        latency=_build(Latency, fields.get("latency", {}), "latency"),
        seed=_typed(fields.get("seed", 0), int, "seed"),
        data=_typed(fields.get("data", ""), str, "data"),
    )


def _name(value: Any, where: str) -> str:
    try:
        return check_name(_typed(value, str, where))
    except ValueError as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"{where}: {error}") from None


def _variant(name: str, value: Any) -> Variant:
    where = f"variants.{name}"
    allowed = ("passes", "runtime", "threads", "device", "compile", "goals", "search")
    fields = _mapping(value or {}, where, allowed)
    passes = fields.pop("passes", [])
    if not isinstance(passes, Sequence) or isinstance(passes, str):
        raise RecipeError(f"{where}.passes: a list, one pass per item")
    goals = _goals(fields.pop("goals", []), f"{where}.goals")
    search = fields.pop("search", None)
    plain = {k: _typed(v, get_type_hints(Variant)[k], f"{where}.{k}") for k, v in fields.items()}
    return Variant(
        name=name,
        passes=tuple(_pass(p, f"{where}.passes[{i}]") for i, p in enumerate(passes)),
        goals=goals,
        search=None if search is None else _search(search, f"{where}.search"),
        **plain,
    )


def _pass(value: Any, where: str) -> PassSpec:
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, Mapping) or len(value) != 1:
        raise RecipeError(
            f"{where}: one pass and its settings, e.g. quantize_static: {{calibration: entropy}}"
        )
    ((kind, settings),) = value.items()
    spec = SPECS.get(kind)
    if spec is None:
        raise RecipeError(f"{where}: unknown pass {kind!r}{_hint(str(kind), SPECS)}")
    return _build(spec, settings or {}, f"{where}.{kind}")


def _goals(value: Any, where: str) -> tuple[Goal, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RecipeError(
            f"{where}: a list of {{figure: ..., at_most: ...}} or {{figure: ..., at_least: ...}}"
        )
    return tuple(_build(Goal, v, f"{where}[{i}]") for i, v in enumerate(value))


def _search(value: Any, where: str) -> Search:
    fields = _mapping(value, where, ("step", "values", "tries"))
    values = fields.get("values")
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where}.values: a mapping of a field of the pass to a list of values")
    return Search(
        step=_typed(fields.get("step", 0), int, f"{where}.step"),
        values={str(k): tuple(v) if isinstance(v, list) else (v,) for k, v in values.items()},
        tries=_typed(fields.get("tries", 8), int, f"{where}.tries"),
    )


def candidate(spec: PassSpec, changes: Mapping[str, Any], where: str) -> PassSpec:
    """``spec`` with some fields changed, checked like one from a file."""
    current = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    return _build(type(spec), {**current, **changes}, where)


def _build(cls: type[T], value: Any, where: str) -> T:
    """An instance of a frozen dataclass from a mapping, with every field's type checked."""
    hints = {f.name: get_type_hints(cls)[f.name] for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    fields = _mapping(value, where, tuple(hints))
    try:
        return cls(**{k: _typed(v, hints[k], f"{where}.{k}") for k, v in fields.items()})
    except RecipeError as error:
        if str(error).startswith(where):
            raise
        raise RecipeError(f"{where}: {error}") from None
    except TypeError as error:
        raise RecipeError(f"{where}: {str(error).partition('__init__() ')[2]}") from None


def _mapping(value: Any, where: str, allowed: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where}: a mapping with {', '.join(allowed)}; not {value!r}")
    for key in value:
        if key not in allowed:
            raise RecipeError(f"{where}: unknown field {key!r}{_hint(str(key), allowed)}")
    return dict(value)


def _hint(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _typed(value: Any, hint: Any, where: str) -> Any:
    """``value`` if it is what the type says; a whole number passes for a float, a list for a tuple."""
    if isinstance(hint, UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        for option in options:
            if option is type(None):
                continue
            return _typed(value, option, where)
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise RecipeError(f"{where}: a list, not {value!r}")
        item = get_args(hint)[0]
        return tuple(_typed(v, item, f"{where}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise RecipeError(f"{where}: must be {_WORDS.get(hint, hint.__name__)}, not {value!r}")
    return value


_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
