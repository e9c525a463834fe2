"""Conditions on the headers and the parameters of a request: by name, the values that will do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from router.policy.conditions.condition import (
    ANY,
    Known,
    RouteCondition,
    SampleRequest,
    Samples,
    alternatives,
    as_written,
)
from router.policy.terms.route_facts import RouteFacts
from router.policy.terms.values import one_or_more

Scalar = bool | int | float | str


def _scalar(value: Any) -> Any:
    if not isinstance(value, Scalar):
        raise ValueError(
            f"{value!r} cannot be compared; write a text, a number, true or false, or a list of them"
        )
    return value


def _texts(value: Any) -> Any:
    values = one_or_more(value)
    for item in values:
        if not isinstance(item, str) or not item.isprintable():
            raise ValueError(f"{item!r} is not a header's value; write a text in quotes, or '*' for any")
    return values


def _one_or_list(item: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]})


Texts = Annotated[
    tuple[str, ...], BeforeValidator(_texts), Field(min_length=1), _one_or_list({"type": "string"})
]
Scalars = Annotated[
    tuple[Annotated[Any, BeforeValidator(_scalar)], ...],
    BeforeValidator(one_or_more),
    Field(min_length=1),
    _one_or_list({"type": ["string", "number", "boolean"]}),
]


def _is_among(value: Any, wanted: tuple[Any, ...]) -> bool:
    """Whether a parameter's value is one of those wanted; ``true`` is not 1, and ``"*"`` is any."""
    return any(
        one == ANY or (value == one and isinstance(value, bool) == isinstance(one, bool)) for one in wanted
    )


def _mismatch(what: str, is_there: bool, given: Any, wanted: tuple[Any, ...]) -> str:
    text = as_written(given) if is_there else "absent"
    return f"{what} is {text}" + ("" if ANY in wanted else f", not {alternatives(wanted)}")


def _by_name(members: Iterable[tuple[str, tuple[Any, ...]]]) -> Iterator[tuple[str, list[Any], str]]:
    """For each name its values, each once and without ``"*"``, and a text that is none of them."""
    by_name: dict[str, dict[tuple[type, Any], Any]] = {}
    for name, values in members:
        distinct = {(type(value), value): value for value in values if value != ANY}  # true is not 1
        by_name.setdefault(name, {}).update(distinct)
    for name, distinct in by_name.items():
        yield name, list(distinct.values()), "".join(map(str, distinct.values())) + "-"


class HeaderCondition(RouteCondition[Mapping[str, Texts]]):
    """Headers of the request, by name: the value, a list of values that will do, or ``*`` for any."""

    NEEDS, EXAMPLE = "headers", "{X-Tier: [gold, silver]}"

    @model_validator(mode="after")
    def _named(self) -> Self:
        for name in self.root:
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
                raise ValueError(f"{name!r} is not a header's name")
        return self

    @cached_property
    def wanted_headers(self) -> tuple[tuple[bytes, tuple[bytes, ...]], ...]:
        """As headers arrive: names in lower case, values in latin-1."""
        return tuple(
            (name.lower().encode(), tuple(value.encode("latin-1", "replace") for value in values))
            for name, values in self.root.items()
        )

    def holds(self, facts: RouteFacts) -> bool:
        for name, wanted in self.wanted_headers:
            value = facts.headers.get(name)
            if value is None or not (value in wanted or b"*" in wanted):
                return False
        return True

    def mismatches(self, facts: RouteFacts) -> Iterator[str]:
        for name, values in self.root.items():
            if not HeaderCondition({name: values}).holds(facts):
                given = facts.headers.get(name.lower().encode())
                text = given.decode("latin-1") if given is not None else None
                yield _mismatch(f"header {name}", given is not None, text, values)

    def by_quantity(self) -> Iterator[tuple[str, Self]]:
        for name, values in self.root.items():
            yield f"header {name.lower()}", type(self)({name: values})

    @classmethod
    def samples(cls, conditions: Sequence[Self], known: Known) -> Samples:
        members = ((name.lower(), texts) for each in conditions for name, texts in each.root.items())
        for name, texts, other in _by_name(members):
            samples = [SampleRequest({"headers": {}}, "absent")]
            for text in (other, *texts):
                facts = {"headers": {name.encode(): text.encode("latin-1", "replace")}}
                samples.append(SampleRequest(facts, "another" if text is other else repr(text)))
            yield f"header {name}", samples


class ParameterCondition(RouteCondition[Mapping[str, Scalars]]):
    """Parameters of the request, by name: the value, a list of values that will do, or ``*`` for any."""

    NEEDS, EXAMPLE = "parameters", "{explain: true}"

    def holds(self, facts: RouteFacts) -> bool:
        given = facts.parameters
        return all(name in given and _is_among(given[name], wanted) for name, wanted in self.root.items())

    def mismatches(self, facts: RouteFacts) -> Iterator[str]:
        for name, wanted in self.root.items():
            value = facts.parameters.get(name)
            if name not in facts.parameters or not _is_among(value, wanted):
                yield _mismatch(f"parameter {name}", value is not None, value, wanted)

    def by_quantity(self) -> Iterator[tuple[str, Self]]:
        for name, values in self.root.items():
            yield f"parameter {name}", type(self)({name: values})

    @classmethod
    def samples(cls, conditions: Sequence[Self], known: Known) -> Samples:
        members = ((name, scalars) for each in conditions for name, scalars in each.root.items())
        for name, scalars, other in _by_name(members):
            samples = [SampleRequest({"parameters": {}}, "absent")]
            for value in (other, *scalars):
                text = "another" if value is other else repr(value)
                samples.append(SampleRequest({"parameters": {name: value}}, text))
            yield f"parameter {name}", samples
