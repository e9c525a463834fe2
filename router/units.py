"""Durations and sizes as people write them: ``50ms``, ``10min``, ``16MiB``."""

from __future__ import annotations

import math
import re
import reprlib
from datetime import timedelta
from decimal import Decimal

_MS = {
    "us": 0.001,
    "ms": 1.0,
    "s": 1_000.0,
    "sec": 1_000.0,
    "m": 60_000.0,
    "min": 60_000.0,
    "h": 3_600_000.0,
    "d": 86_400_000.0,
}
_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z]*)\s*")
_MAX_BYTES = 1 << 60

MAX_BUDGET_MS = 30 * _MS["d"]


def duration_ms(value: str | int | float | timedelta) -> float:
    """Milliseconds of ``"50ms"``, ``"1.5s"``, ``"10min"``, ``"2h"``, ``"1d"``, a timedelta, or seconds.

    Raises ValueError, with what is allowed, for anything else: a bare number in a string has no unit,
    and no duration is negative or endless.
    """
    if isinstance(value, timedelta):
        ms = value / timedelta(milliseconds=1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            ms = value * 1_000.0
        except OverflowError:  # a whole number that no float holds
            ms = math.inf
    else:
        # Callers outside of type checking (a YAML file, say) may bring anything.
        match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
        unit = match and _MS.get(match[2].lower())
        if not match or not unit:
            raise ValueError(f"{_repr(value)} is not a duration; write 50ms, 2s, 10min or 2h")
        ms = float(match[1]) * unit
    if not math.isfinite(ms) or ms < 0:
        raise ValueError(f"{_repr(value)} is not a duration; it must be finite and not negative")
    return ms


def budget_ms(value: str | int | float | timedelta) -> float:
    """A latency budget in milliseconds: a duration above zero and at most 30 days."""
    ms = duration_ms(value)
    if not 0 < ms <= MAX_BUDGET_MS:
        raise ValueError(
            f"a latency budget of {_repr(value)} is out of range; it must be above 0 and at most 30d"
        )
    return ms


def size_bytes(value: str | int) -> int:
    """Bytes of ``"16MiB"``, ``"4GB"`` or a whole number of bytes. Raises ValueError for anything else."""
    size: float | Decimal = -1
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _QUANTITY.fullmatch(value)):
        # Decimal: a float would round a large number of bytes.
        size = Decimal(match[1]) * _BYTES.get(match[2].lower() or "b", -1)
    if size < 0:
        raise ValueError(f"{_repr(value)} is not a size; write 512KiB, 16MiB, 4GiB or a number of bytes")
    if size > _MAX_BYTES:
        raise ValueError(f"{_repr(value)} is out of range; a size is at most 1 EiB")
    return int(size)


def fraction(value: str | int | float) -> float:
    """A share such as ``"20%"`` or ``0.2`` as a number; bounds are the caller's. Raises ValueError."""
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value.replace("%", "").strip()) if value.rstrip().endswith("%") else None
        if not match or match[2]:
            raise ValueError(f"{_repr(value)} is not a share; write 20% or 0.2")
        return float(match[1]) / 100.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{_repr(value)} is not a share; write 20% or 0.2")
    return float(value)


def rate_per_s(value: str) -> float:
    """Events per second of ``"100/s"``, ``"6000/min"`` or ``"5/h"``. Raises ValueError for anything else."""
    count, slash, unit = value.partition("/") if isinstance(value, str) else ("", "", "")
    match = _QUANTITY.fullmatch(count)
    per_ms = _MS.get(unit.strip().lower())
    if not slash or not match or match[2] or per_ms is None:
        raise ValueError(f"{_repr(value)} is not a rate; write 100/s, 6000/min or 5/h")
    return float(match[1]) * 1_000.0 / per_ms


def _repr(value: object) -> str:
    """A value in an error: short, whatever was given."""
    if isinstance(value, int) and abs(value) > 1 << 64:
        return "the number"
    return reprlib.repr(value)


def format_ms(ms: float) -> str:
    """A duration for a person: three significant digits and the unit that keeps them short."""
    for unit, size in (("d", _MS["d"]), ("h", _MS["h"]), ("min", _MS["min"]), ("s", 1_000.0)):
        # What three digits would round up to the larger unit is shown in it.
        if abs(ms) >= size * 0.9995:
            count = ms / size
            return f"{count:.3g}{unit}" if abs(count) < 999.5 else f"{count:.0f}{unit}"
    return f"{ms:.3g}ms"
