"""What a technique is: a spec whose fields are checked, the forms of model it takes, and its function.

Each technique is one file of this package, named as recipes name it, with ``TECHNIQUE`` at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from optimizers.formats.errors import RecipeError
from optimizers.task import PassContext, TaskModel


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


def check_training(spec: PassSpec, least_epochs: int) -> None:
    """The fields that every pass with training in it has."""
    within(spec, "epochs", least_epochs, 1000)
    within(spec, "learning_rate", 1e-9, 10)
    within(spec, "batch", 1, 65_536)


@dataclass(frozen=True)
class Technique:
    """One technique: its ``spec``, the ``forms`` of model that it takes, and the function that applies it.

    The pipeline converts a model of another form to the first of ``forms``. ``apply`` gives a new
    model and leaves its argument as it was. Its module imports heavy libraries when it runs, not before:
    reading a recipe imports every technique that the recipe names.
    """

    spec: type[PassSpec]
    forms: tuple[str, ...]
    apply: Callable[[TaskModel, Any, PassContext], TaskModel]
