"""What a line of a trace, or a part of a mix, says of one request, by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import orjson

from router import units

#: The names, as people are shown them.
FORMS = ("model", "budget", "budget_ms", "rows", "tenant", "variant", "header.NAME", "parameter.NAME")

_NONE: Mapping[Any, Any] = {}
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: Headers and parameters that a column of its own stands for.
_HEADER_COLUMNS = {"latency-budget-ms": "budget", "tenant": "tenant"}
_PARAMETER_COLUMNS = {"latency_budget_ms": "budget", "timeout": "budget"}
#: Headers that belong to the connection, the body or the sender's key: `bench` writes them itself.
_SENDERS_OWN = frozenset(
    (
        "host",
        "connection",
        "transfer-encoding",
        "content-length",
        "content-type",
        "content-encoding",
        "inference-header-content-length",
        "accept",
        "accept-encoding",
        "authorization",
        "x-api-key",
        "user-agent",
        "idempotency-key",
        "expect",
    )
)


class ColumnError(ValueError):
    """A name that stands for nothing, or a value that is none; the message says what can be written."""


@dataclass(frozen=True, slots=True)
class Said:
    """What is said of a request; None, or nothing in a mapping, where it is left open. Header names are in
    lower case."""

    model: str | None = None
    budget_ms: float | None = None
    rows: int | None = None
    tenant: str | None = None
    variant: str | None = None
    headers: Mapping[bytes, bytes] = field(default_factory=lambda: _NONE)
    parameters: Mapping[str, Any] = field(default_factory=lambda: _NONE)


NOTHING = Said()


class _Place(NamedTuple):
    kind: Literal["model", "budget", "budget_ms", "rows", "tenant", "variant", "header", "parameter"]
    name: str = ""


def read(values: Mapping[str, Any], *, typed: bool = False) -> Said:
    """What ``values`` say, by name. A value that is None or empty is left open.

    ``typed``: a parameter's value is what it is. Else it is a text, in which true, false and numbers are read
    as JSON has them. Raises `ColumnError`.
    """
    said: dict[str, Any] = {}
    headers: dict[bytes, bytes] = {}
    parameters: dict[str, Any] = {}
    for name, value in values.items():
        place = _place(name)
        if value is None or value == "":
            continue
        match place.kind:
            case "header":
                headers[place.name.encode()] = _header(name, value)
            case "parameter":
                parameters[place.name] = _parameter(name, value, typed)
            case "budget" | "budget_ms":
                # Where a trace has both, ``budget`` counts.
                if place.kind == "budget" or "budget_ms" not in said:
                    said["budget_ms"] = _budget_ms(place.kind, name, value)
            case "rows":
                said["rows"] = _rows(value)
            case kind:
                said[kind] = _text(name, value)
    if not said and not headers and not parameters:
        return NOTHING
    return Said(**said, headers=headers or _NONE, parameters=parameters or _NONE)


@lru_cache(maxsize=1_024)
def _place(name: str | None) -> _Place:
    if name is None:
        raise ColumnError("it has more values than the first line has names")
    plain = name.strip()
    match plain.lower():
        case "model" | "budget" | "budget_ms" | "rows" | "tenant" | "variant" as kind:
            return _Place(kind)
        case "latency_budget_ms":
            return _Place("budget_ms")
    prefix, dot, rest = plain.partition(".")
    if dot and prefix.lower() == "header":
        return _Place("header", _header_name(plain, rest))
    if dot and prefix.lower() == "parameter" and rest:
        if rest in _PARAMETER_COLUMNS:
            raise ColumnError(f"{plain!r}: write it as {_PARAMETER_COLUMNS[rest]!r}")
        return _Place("parameter", rest)
    raise ColumnError(f"{plain!r} says nothing about a request; {hint(plain, FORMS)}")


def _header_name(column: str, name: str) -> str:
    if not _HEADER_NAME.fullmatch(name):
        raise ColumnError(f"{column!r}: {name!r} is not a header's name; write header.X-Tier")
    lower = name.lower()
    if lower in _HEADER_COLUMNS:
        raise ColumnError(f"{column!r}: write it as {_HEADER_COLUMNS[lower]!r}")
    if lower in _SENDERS_OWN:
        raise ColumnError(f"{column!r}: this header cannot be set here, the sender writes it itself")
    return lower


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ColumnError(f"{name} is {value!r}; write a text")
    return str(value).strip()


def _header(name: str, value: Any) -> bytes:
    text = _text(name, value)
    try:
        if text.isprintable():
            return text.encode("latin-1")
    except UnicodeEncodeError:
        pass
    raise ColumnError(f"{name} is {text!r}, which has a character that no header can carry")


def _parameter(name: str, value: Any, typed: bool) -> bool | int | float | str:
    if isinstance(value, str) and not typed:
        try:
            found = orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
        return found if isinstance(found, bool | int | float | str) else value
    if not isinstance(value, bool | int | float | str):
        raise ColumnError(f"{name} is {value!r}; write a text, a number, true or false")
    return value


def _budget_ms(kind: str, name: str, value: Any) -> float:
    """``budget`` is a duration, or a number of seconds."""
    try:
        if kind == "budget_ms":
            return units.budget_ms(float(value) / 1_000.0)
        number = str(value).replace(".", "", 1).isdigit()
        return units.budget_ms(float(value) if number else value)
    except (TypeError, ValueError) as error:
        raise ColumnError(f"{name}: {error}") from None


def _rows(value: Any) -> int:
    try:
        rows = int(value)
    except (TypeError, ValueError, OverflowError):
        rows = 0
    if rows < 1 or isinstance(value, bool):
        raise ColumnError(f"rows is {value!r}, which is not a whole number of 1 or more")
    return rows


def hint(name: str, known: Collection[str]) -> str:
    """The nearest of the names that are known, or all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known here: {', '.join(known)}" if known else "none is known here"
