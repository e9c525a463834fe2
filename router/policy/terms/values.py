"""Quantities and names as people write them in a policy file, and what every section of it has in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from router import units


class Section(BaseModel):
    """A part of the policy file: unknown keys are errors, and nothing changes after reading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )


def written(kind: str, what: str, pattern: str, *, number: bool = True) -> WithJsonSchema:
    """How an editor shows a quantity of a kind: as people write it, not as it is kept."""
    text = {"type": "string", "pattern": pattern}
    if not number:
        return WithJsonSchema({**text, "description": what, "x-kind": kind})
    return WithJsonSchema(
        {"anyOf": [text, {"type": "number", "minimum": 0}], "description": what, "x-kind": kind}
    )


def one_or_more(value: Any) -> Any:
    """A single value where a list may stand."""
    return value if isinstance(value, list | tuple) else (value,)


_DURATION = written(
    "duration", "50ms, 2s, 10min, 2h; a number is seconds", r"^\s*[0-9.]+\s*(us|ms|s|sec|m|min|h|d)\s*$"
)
_SIZE = written("size", "512KiB, 16MiB, 4GB; a number is bytes", r"^\s*[0-9.]+\s*([kKmMgG]i?)?[bB]?\s*$")
_SHARE = written("share", "20%, or 0.2", r"^\s*[0-9.]+\s*%\s*$")
_RATE = written("rate", "100/s, 6000/min, 5/h", r"^\s*[0-9.]+\s*/\s*(s|sec|m|min|h|d)\s*$", number=False)

Milliseconds = Annotated[float, BeforeValidator(units.duration_ms), _DURATION]
BudgetMs = Annotated[float, BeforeValidator(units.budget_ms), _DURATION]
Bytes = Annotated[int, BeforeValidator(units.size_bytes), _SIZE]
#: A share of a whole, kept as 0 to 1.
Share = Annotated[float, BeforeValidator(units.fraction), Field(ge=0, le=1), _SHARE]
#: A share that is aimed at; all of it cannot be promised.
Confidence = Annotated[float, BeforeValidator(units.fraction), Field(ge=0, lt=1), _SHARE]
#: A part on top of a whole, which may be more than the whole.
Surcharge = Annotated[float, BeforeValidator(units.fraction), Field(ge=0, le=10), _SHARE]
#: Events per second.
PerSecond = Annotated[float, BeforeValidator(units.rate_per_s), Field(gt=0), _RATE]
#: An origin as browsers write it (RFC 6454), without a slash at the end; or any.
_ORIGIN = r"^(\*|https?://[A-Za-z0-9._\[\]:-]+)$"
Origin = Annotated[str, Field(pattern=_ORIGIN)]
_NAME = {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$", "x-kind": "name"}
Name = Annotated[str, Field(pattern=_NAME["pattern"], json_schema_extra={"x-kind": "name"})]
Names = Annotated[
    tuple[Name, ...],
    BeforeValidator(one_or_more),
    Field(min_length=1),
    WithJsonSchema({"anyOf": [_NAME, {"type": "array", "items": _NAME, "minItems": 1}]}),
]
