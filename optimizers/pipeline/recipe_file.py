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

import copy
from collections.abc import Mapping
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import CoreSchema, core_schema

from optimizers.artifact import check_name
from optimizers.files.problems import PlacedError
from optimizers.files.yaml import FileError, FileKind, checked, errors_of
from optimizers.formats.errors import RecipeError
from optimizers.passes.registry import kinds, technique
from optimizers.passes.technique import PassSpec
from optimizers.pipeline.recipe import Goal, Latency, Recipe, Search, Variant


def read(path: Path) -> Recipe:
    """The recipe in a YAML file. Raises :class:`RecipeError`."""
    try:
        return _RECIPE.read(path)
    except FileError as error:
        raise RecipeError(str(error)) from None


def parse(text: str, source: str = "recipe") -> Recipe:
    """The recipe in YAML text; ``source`` names it in errors. Raises :class:`RecipeError`."""
    try:
        return _RECIPE.parse(text, source)
    except FileError as error:
        raise RecipeError(str(error)) from None


def candidate(spec: PassSpec, changes: Mapping[str, Any], *place: str | int) -> PassSpec:
    """``spec`` with some fields changed, checked like one from a file. Raises :class:`RecipeError`."""
    current = {f.name: getattr(spec, f.name) for f in fields(spec)}
    try:
        changed: PassSpec = checked({**current, **changes}, type(spec), strict=True)
    except ValidationError as error:
        first = errors_of(error)[0]
        raise RecipeError(first["msg"].removeprefix("Value error, "), *place, *first["loc"]) from None
    return changed


class _Pass:
    """One item of ``passes``: the name of a technique, alone or with its settings."""

    @classmethod
    def known_keys(cls) -> Mapping[str, Any]:
        return {kind: technique(kind).spec for kind in kinds()}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(cls._read)

    @staticmethod
    def _read(value: Any) -> Any:
        item = {value: {}} if isinstance(value, str) else value
        if not isinstance(item, Mapping) or len(item) != 1:
            raise RecipeError("one pass and its settings, e.g. quantize_static: {calibration: entropy}")
        ((kind, settings),) = item.items()
        spec = technique(str(kind)).spec
        return checked({kind: settings or {}}, dict[str, spec], strict=True)[kind]  # type: ignore[valid-type]


def _task(value: str) -> str:
    if value.count(":") != 1:
        raise ValueError(f"{value!r} is not module:function, e.g. optimizers.examples.digits:task")
    return value


def _search(search: Any) -> Search:
    """A search may name a single value where a list may stand."""
    values = {k: tuple(v) if isinstance(v, list) else (v,) for k, v in search.values.items()}
    return Search(search.step, values, search.tries)


def _in_file(cls: type, *, without: str = "", **annotations: Any) -> Any:
    """A dataclass with the fields of ``cls`` as the file has them, some of them written another way."""
    types = {**get_type_hints(cls), **annotations}
    return make_dataclass(
        f"{cls.__name__}InFile",
        [(f.name, types[f.name], copy.copy(f)) for f in fields(cls) if f.name != without],
    )


_Name = Annotated[str, AfterValidator(check_name)]
_Search = Annotated[_in_file(Search, values=Mapping[str, Any]), AfterValidator(_search)]  # type: ignore[valid-type]
_Variant = _in_file(Variant, without="name", passes=tuple[_Pass, ...], search=_Search | None)


class _RecipeInFile(BaseModel):
    """What a recipe file holds: a recipe whose variants stand under their names."""

    model_config = ConfigDict(extra="forbid")

    name: _Name
    task: Annotated[str, AfterValidator(_task)]
    variants: Annotated[dict[_Name, _Variant | None], Field(min_length=1)]  # type: ignore[valid-type]
    goals: tuple[Goal, ...] = ()
    latency: Latency = Latency()
    seed: int = 0
    data: str = ""

    def recipe(self) -> Recipe:
        """Raises :class:`PlacedError` for parts that do not fit together."""
        variants = []
        for name, settings in self.variants.items():
            try:
                variants.append(Variant(name, **(vars(settings) if settings else {})))
            except RecipeError as error:
                raise PlacedError(
                    (("variants", name, *place), text) for place, text in error.problems
                ) from None
        parts = {name: getattr(self, name) for name in type(self).model_fields}
        return Recipe(**{**parts, "variants": tuple(variants)})


_RECIPE: FileKind[Recipe] = FileKind(
    name="recipe",
    holds=Annotated[_RecipeInFile, AfterValidator(_RecipeInFile.recipe)],
    is_mapping_with="'name', 'task' and 'variants'",
    strict=True,
)
