"""When requests arrive: from a recorded trace (CSV or JSONL), or from a seeded generator."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optimizers.files.text import TextError, read_text

_TIME_COLUMNS = ("timestamp", "time", "arrival", "arrived_at", "arrival_time", "ts", "t", "datetime")
#: A number this large is an epoch or a clock in milliseconds, not seconds, if its name does not say.
_NOT_SECONDS = 1e11
#: Seconds from here on count from 1970 (this is 2001): no clock that begins at 0 gets as far.
_EPOCH_S = 1e9
#: How the names of files end that hold a JSON object a line.
JSON_LINES = (".jsonl", ".ndjson")
_FRACTION = re.compile(r"([^.]+)(\.[0-9]+)(Z|[+-][0-9:]+)?")


class TraceError(ValueError):
    """A trace that cannot be read; the message names the file, the line and what was expected."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One line of a trace: seconds from the first arrival, the other columns, and the line's number.
    ``epoch_s`` is the wall clock, seconds since 1970, where the trace has it."""

    at_s: float
    columns: Mapping[str, Any]
    line: int = 0
    epoch_s: float | None = None


def read(path: str | Path) -> list[Arrival]:
    """The arrivals of a trace, ascending, the first at 0.

    CSV: a header with a time column (``timestamp``, ``time``, ...); JSONL: an object a line with such a
    member. A time is a number (seconds; milliseconds where the name ends in ``_ms``, or all values are
    whole and the JSONL member is ``timestamp``) or an ISO 8601 date. Dates, and numbers that count from
    1970, are the wall clock as well. Raises `TraceError`.
    """
    file = Path(path)
    try:
        rows = list(_jsonl(file) if file.suffix in JSON_LINES else _csv(file))
    except (OSError, TextError, csv.Error) as error:
        raise TraceError(f"{file}: cannot be read: {error}") from None
    if not rows:
        raise TraceError(f"{file}: no arrivals in it")
    name = _time_column(rows[0][1], file)
    times = [_seconds(row.get(name), file, line) for line, row in rows]
    whole_ms = file.suffix != ".csv" and all(isinstance(row.get(name), int) for _, row in rows)
    in_ms = name.lower().endswith("_ms") or (whole_ms and name.lower() == "timestamp")
    per_s = 1_000.0 if in_ms or times[0] > _NOT_SECONDS else 1.0
    first = min(times)
    dated = first / per_s >= _EPOCH_S
    arrivals = []
    for at, (line, row) in zip(times, rows, strict=True):
        columns = {key: value for key, value in row.items() if key != name}
        arrivals.append(Arrival((at - first) / per_s, columns, line, at / per_s if dated else None))
    return sorted(arrivals, key=lambda arrival: arrival.at_s)


def read_arrivals(path: str | Path) -> list[float]:
    """Just the times of `read`."""
    return [arrival.at_s for arrival in read(path)]


def _csv(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    yield from enumerate(csv.DictReader(io.StringIO(read_text(file), newline="")), 2)


def _jsonl(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(io.StringIO(read_text(file), newline=None), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TraceError(f"{file}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise TraceError(f"{file}:{number}: each line must be a JSON object")
        yield number, row


def _time_column(row: Mapping[str, Any], file: Path) -> str:
    names = {name.lower(): name for name in row if name}
    for known in _TIME_COLUMNS:
        for suffix in ("", "_ms", "_s"):
            if known + suffix in names:
                return names[known + suffix]
    raise TraceError(f"{file}: no time column; name one {_TIME_COLUMNS[0]!r} (found: {', '.join(names)})")


def _seconds(value: Any, file: Path, line: int) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = iso_s(value)
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):  # a whole number that no float holds
            number = float(value)
    if not math.isfinite(number):
        raise TraceError(f"{file}:{line}: not a time; write seconds or an ISO 8601 date")
    return number


def iso_s(text: str) -> float | None:
    """Seconds since 1970 of an ISO 8601 date; without an offset it is taken for UTC."""
    # The fraction may have more digits than the six that datetime keeps.
    match = _FRACTION.fullmatch(text.strip())
    head, fraction, offset = match.groups() if match else (text.strip(), None, "")
    try:
        base = datetime.fromisoformat(head + (offset or ""))
    except ValueError:
        return None
    if base.tzinfo is None:
        base = base.replace(tzinfo=UTC)
    return base.timestamp() + (float(fraction) if fraction else 0.0)


def scaled(arrivals: Sequence[float], rate_per_s: float) -> list[float]:
    """The same arrivals at another mean rate: time is stretched, bursts stay bursts."""
    if len(arrivals) < 2 or arrivals[-1] <= 0:
        return list(arrivals)
    factor = (len(arrivals) - 1) / arrivals[-1] / rate_per_s
    return [t * factor for t in arrivals]


def bursty(rate_per_s: float, seconds: float, seed: int) -> list[float]:
    """Poisson arrivals, three times as dense in one second of five; ``rate_per_s`` is the mean."""
    draw = random.Random(seed)
    low = rate_per_s * 5.0 / 7.0
    arrivals: list[float] = []
    t = 0.0
    while True:
        t += draw.expovariate(3.0 * low)
        if t >= seconds:
            return arrivals
        # Thinning: outside the burst only a third of the candidates arrive.
        if t % 5.0 >= 4.0 or draw.random() < 1.0 / 3.0:
            arrivals.append(t)
