"""The conditions of a route: what each says of a request, and whether it holds. Pure.

Every condition is an object with ``holds(value)``, so that `router.scheduling.policy_check` can ask it about
values that no request has brought yet.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from functools import cached_property, lru_cache
from typing import Annotated, Any, ClassVar, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from router import units
from router.policy.facts import RouteFacts
from router.policy.values import Names, Section, one_or_more

Sign = Literal["<", "<=", ">", ">="]

_COMPARISON = re.compile(r"\s*(<=|>=|<|>)\s*([^<>=,]+?)\s*")
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


class _Range(Section):
    """Bounds on a quantity, written as comparisons with commas between them; all must hold."""

    text: str
    bounds: tuple[tuple[Sign, float], ...]

    WHAT: ClassVar[str]
    UNIT: ClassVar[str]
    EXAMPLE: ClassVar[str]

    @classmethod
    def _number(cls, text: str) -> float:
        raise NotImplementedError

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not a bound on {cls.WHAT}; write {cls.EXAMPLE}")
        bounds = []
        for part in value.split(","):
            match = _COMPARISON.fullmatch(part)
            if not match:
                raise ValueError(f"{part.strip()!r} is not a bound; write <, <=, > or >= and {cls.UNIT}")
            bounds.append((match[1], cls._number(match[2])))
        return {"text": value, "bounds": tuple(bounds)}

    def holds(self, value: float) -> bool:
        for sign, bound in self.bounds:  # noqa: SIM110 -- `all` costs twice as much, on every request
            if not _COMPARE[sign](value, bound):
                return False
        return True


class BudgetRange(_Range):
    """Bounds on a latency budget, written ``"<= 250ms"`` or ``"> 250ms, <= 30s"``."""

    WHAT, UNIT, EXAMPLE = "the budget", "a duration", "'<= 250ms' or '> 250ms, <= 30s'"

    @classmethod
    def _number(cls, text: str) -> float:
        return units.duration_ms(text)


class RowsRange(_Range):
    """Bounds on the rows of a request, written ``"<= 8"`` or ``"> 8, <= 64"``."""

    WHAT, UNIT, EXAMPLE = "the rows", "a whole number", "'<= 8' or '> 8, <= 64'"

    @classmethod
    def _number(cls, text: str) -> float:
        if not text.isdigit():
            raise ValueError(f"{text!r} is not a number of rows; write {cls.EXAMPLE}")
        return float(text)


_DAY = re.compile(r"\s*([0-9]{1,2}):([0-9]{2})\s*-\s*([0-9]{1,2}):([0-9]{2})(?:\s+([A-Za-z0-9_+/-]+))?\s*")


@lru_cache(maxsize=64)
def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)


class DayTime(Section):
    """A time of day without its end, written ``"22:00-06:00"`` (UTC) or ``"08:00-18:00 Europe/Vienna"``."""

    text: str
    from_min: int
    to_min: int
    zone: str

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        match = _DAY.fullmatch(value) if isinstance(value, str) else None
        if not match:
            raise ValueError(
                f"{value!r} is not a time of day; write '22:00-06:00' or '08:00-18:00 Europe/Vienna'"
            )
        begin, end = int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])
        if int(match[2]) > 59 or int(match[4]) > 59 or begin >= 1440 or end > 1440:
            raise ValueError(f"{value!r} is not a time of day; hours go from 00:00 to 24:00")
        if begin == end:
            raise ValueError(f"{value!r} is empty; leave the condition out for the whole day")
        zone = match[5] or "UTC"
        try:
            _zone(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(
                f"{zone!r} is not a time zone that this machine knows; write UTC or Europe/Vienna"
            ) from None
        return {"text": value, "from_min": begin, "to_min": end, "zone": zone}

    def clock(self, epoch_s: float) -> datetime:
        """A moment as the clocks of this condition's zone show it."""
        return datetime.fromtimestamp(epoch_s, _zone(self.zone))

    def holds(self, epoch_s: float) -> bool:
        at = self.clock(epoch_s)
        minute = at.hour * 60 + at.minute
        if self.from_min < self.to_min:
            return self.from_min <= minute < self.to_min
        return minute >= self.from_min or minute < self.to_min


_ANY = "*"
Scalar = bool | int | float | str


def _scalar(value: Any) -> Any:
    if not isinstance(value, Scalar):
        raise ValueError(
            f"{value!r} cannot be compared; write a text, a number, true or false, or a list of them"
        )
    return value


def _texts(value: Any) -> Any:
    found = one_or_more(value)
    for item in found:
        if not isinstance(item, str) or not item.isprintable():
            raise ValueError(f"{item!r} is not a header's value; write a text in quotes, or '*' for any")
    return found


_TEXT = {"type": "string"}
_SCALAR = {"type": ["string", "number", "boolean"]}
Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(_texts),
    Field(min_length=1),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]}),
]
Scalars = Annotated[
    tuple[Annotated[Any, BeforeValidator(_scalar)], ...],
    BeforeValidator(one_or_more),
    Field(min_length=1),
    WithJsonSchema({"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR, "minItems": 1}]}),
]


def is_among(value: Any, wanted: tuple[Any, ...]) -> bool:
    """Whether a parameter's value is one of those wanted; ``true`` is not 1, and ``"*"`` is any."""
    return any(
        one == _ANY or (value == one and isinstance(value, bool) == isinstance(one, bool)) for one in wanted
    )


class When(Section):
    """The conditions of a route; all that are given must hold."""

    budget: BudgetRange | None = None
    model: Names | None = None
    tenant: Names | None = None
    rows: RowsRange | None = None
    time: DayTime | None = None
    header: Mapping[str, Texts] = {}
    parameter: Mapping[str, Scalars] = {}

    @model_validator(mode="after")
    def _named(self) -> When:
        for name in self.header:
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
                raise ValueError(f"{name!r} is not a header's name")
        return self

    @cached_property
    def headers(self) -> tuple[tuple[bytes, tuple[bytes, ...]], ...]:
        """The headers that must be there, as they come: names in lower case, values in latin-1."""
        return tuple(
            (name.lower().encode(), tuple(value.encode("latin-1", "replace") for value in values))
            for name, values in self.header.items()
        )

    def holds(self, ask: RouteFacts) -> bool:
        if self.model is not None and ask.model not in self.model:
            return False
        if self.budget is not None and not self.budget.holds(ask.budget_ms):
            return False
        if self.tenant is not None and ask.tenant not in self.tenant:
            return False
        if self.rows is not None and not self.rows.holds(ask.rows):
            return False
        if self.header and not self._headers_hold(ask.headers):
            return False
        if self.parameter and not self._parameters_hold(ask.parameters):
            return False
        return self.time is None or self.time.holds(ask.epoch_s)

    def _headers_hold(self, given: Mapping[bytes, bytes]) -> bool:
        for name, wanted in self.headers:
            value = given.get(name)
            if value is None or not (value in wanted or b"*" in wanted):
                return False
        return True

    def _parameters_hold(self, given: Mapping[str, Any]) -> bool:
        return all(name in given and is_among(given[name], wanted) for name, wanted in self.parameter.items())
