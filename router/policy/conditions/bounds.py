"""Conditions on the budget and on the rows of a request: comparisons with commas between them."""

from __future__ import annotations

import operator
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

from pydantic import WithJsonSchema, model_validator

from router import units
from router.policy.conditions.condition import Known, RouteCondition, SampleRequest, Samples
from router.policy.terms.route_facts import RouteFacts
from router.units import MAX_BUDGET_MS, format_ms

_COMPARISON = re.compile(r"\s*(<=|>=|<|>)\s*([^<>=,]+?)\s*")
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_SIGN = r"\s*(<=|>=|<|>)\s*"
_BUDGET, _ROWS = rf"{_SIGN}[0-9.]+\s*[a-zA-Z]*\s*", rf"{_SIGN}[0-9]+\s*"

BudgetText = Annotated[str, WithJsonSchema({"type": "string", "pattern": f"^{_BUDGET}(,{_BUDGET})*$"})]
RowsText = Annotated[str, WithJsonSchema({"type": "string", "pattern": f"^{_ROWS}(,{_ROWS})*$"})]


class _Bounds(RouteCondition[str]):
    """Comparisons that must all hold; ``root`` is the text that was written."""

    WHAT: ClassVar[str]
    UNIT: ClassVar[str]
    HINT: ClassVar[str]

    @classmethod
    @abstractmethod
    def _number(cls, text: str) -> float: ...

    @classmethod
    def _bounds(cls, text: Any) -> list[tuple[str, float]]:
        if not isinstance(text, str):
            raise ValueError(f"{text!r} is not a bound on {cls.WHAT}; write {cls.HINT}")
        bounds = []
        for part in text.split(","):
            match = _COMPARISON.fullmatch(part)
            if not match:
                raise ValueError(f"{part.strip()!r} is not a bound; write <, <=, > or >= and {cls.UNIT}")
            bounds.append((match[1], cls._number(match[2])))
        return bounds

    @model_validator(mode="before")
    @classmethod
    def _check(cls, value: Any) -> Any:
        cls._bounds(value)
        return value

    @cached_property
    def bounds(self) -> tuple[tuple[Callable[[float, float], bool], float], ...]:
        return tuple((_COMPARE[sign], bound) for sign, bound in self._bounds(self.root))

    def includes(self, value: float) -> bool:
        for compare, bound in self.bounds:  # noqa: SIM110 -- `all` costs twice as much, on every request
            if not compare(value, bound):
                return False
        return True


class BudgetCondition(_Bounds):
    """Bounds on the latency budget: ``<= 250ms``, or ``> 250ms, <= 30s``."""

    WHAT, UNIT, HINT = "the budget", "a duration", "'<= 250ms' or '> 250ms, <= 30s'"
    EXAMPLE = '"> 250ms, <= 30s"'
    root: BudgetText

    @classmethod
    def _number(cls, text: str) -> float:
        return units.duration_ms(text)

    def holds(self, facts: RouteFacts) -> bool:
        return self.includes(facts.budget_ms)

    def mismatches(self, facts: RouteFacts) -> Iterator[str]:
        if not self.holds(facts):
            yield f"budget is {format_ms(facts.budget_ms)}, not {self.root.strip()}"

    def by_quantity(self) -> Iterator[tuple[str, Self]]:
        yield "budget", self

    @classmethod
    def samples(cls, conditions: Sequence[Self], known: Known) -> Samples:
        bounds = {bound for condition in conditions for _, bound in condition.bounds}
        edges = sorted(bound for bound in bounds if 0.0 < bound < MAX_BUDGET_MS)
        samples, low_ms, low = [], 0.0, ""
        for edge in [*edges, MAX_BUDGET_MS]:
            last = edge == MAX_BUDGET_MS
            text = (f"above {low}" if low else "all budgets") if last else f"below {format_ms(edge)}"
            if low and not last:
                text = f"between {low} and {format_ms(edge)}"
            samples.append(SampleRequest({"budget_ms": (low_ms + edge) / 2.0}, text, edge))
            if not last:
                samples.append(SampleRequest({"budget_ms": edge}, f"of {format_ms(edge)}", edge))
            low_ms, low = edge, format_ms(edge)
        yield "budget", samples


class RowsCondition(_Bounds):
    """Bounds on the rows of a request: ``<= 8``, or ``> 8, <= 64``."""

    WHAT, UNIT, HINT = "the rows", "a whole number", "'<= 8' or '> 8, <= 64'"
    EXAMPLE = '"> 8, <= 64"'
    root: RowsText

    @classmethod
    def _number(cls, text: str) -> float:
        if not text.isdigit():
            raise ValueError(f"{text!r} is not a number of rows; write {cls.HINT}")
        return float(text)

    def holds(self, facts: RouteFacts) -> bool:
        return self.includes(facts.rows)

    def mismatches(self, facts: RouteFacts) -> Iterator[str]:
        if not self.holds(facts):
            yield f"rows are {facts.rows}, not {self.root.strip()}"

    def by_quantity(self) -> Iterator[tuple[str, Self]]:
        yield "rows", self

    @classmethod
    def samples(cls, conditions: Sequence[Self], known: Known) -> Samples:
        bounds = {int(bound) for condition in conditions for _, bound in condition.bounds}
        near = {bound + step for bound in bounds for step in (-1, 0, 1)} | {1, known.max_rows}
        inside = [rows for rows in sorted(near) if 1 <= rows <= known.max_rows]
        yield "rows", [SampleRequest({"rows": rows}, f"{rows} rows") for rows in inside]
