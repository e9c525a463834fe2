"""What every technique's spec has in common: a name in the recipe file, and fields that are checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from optimizers.files.problems import PlacedError


class RecipeError(PlacedError):
    """A recipe that cannot be carried out. The message says where, what, and how to fix it."""

    def __init__(self, text: str, *place: str | int, within: str = "") -> None:
        super().__init__([(place, text)], within)


@dataclass(frozen=True)
class PassSpec:
    """Base of every technique's spec. ``kind`` is its name in a recipe file."""

    kind: ClassVar[str] = ""
    #: For the reader of recipes: a field that the spec does not have is an error.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def to_json(self) -> dict[str, Any]:
        """``{kind: {field: value}}``: what a recipe file would say, with every default written out."""
        return {self.kind: asdict(self)}

    def refusal(self, name: str, text: str) -> RecipeError:
        """The error for a value that the field ``name`` cannot have."""
        return RecipeError(text, name, within=self.kind)


def one_of(spec: PassSpec, name: str, *allowed: Any) -> None:
    """Raise unless the field ``name`` is one of ``allowed``."""
    value = getattr(spec, name)
    if value not in allowed:
        raise spec.refusal(name, f"{value!r} is not one of {', '.join(map(repr, allowed))}")


def within(spec: PassSpec, name: str, low: float, high: float) -> None:
    """Raise unless the field ``name`` is a number from ``low`` to ``high``."""
    value = getattr(spec, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise spec.refusal(name, f"must be a number from {low:g} to {high:g}, not {value!r}")
