"""What arrives in a simulation: times from a trace or a generator, the rest from its columns or a mix."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router import trace, units


class MixError(ValueError):
    """A mix that cannot be read; the message says what one looks like."""


@dataclass(frozen=True, slots=True)
class Share:
    """One kind of request and its weight among the others."""

    model: str
    budget_ms: float
    rows: int = 1
    weight: float = 1.0
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One simulated request; ``at_ms`` is virtual time from the start. ``weight``: what it costs online, in
    rows of usual size (`router.weights`); 0 stands for ``rows``."""

    at_ms: float
    model: str
    budget_ms: float
    rows: int
    tenant: str = ""
    weight: int = 0


def parse_mix(text: str) -> tuple[Share, ...]:
    """A mix such as ``digits:50ms:0.9,digits:10min:0.1:64``: model, budget, weight, rows."""
    shares = []
    for part in text.split(","):
        fields = part.strip().split(":")
        try:
            model, budget = fields[0], units.budget_ms(fields[1])
            weight = float(fields[2]) if len(fields) > 2 else 1.0
            rows = int(fields[3]) if len(fields) > 3 else 1
        except (IndexError, ValueError) as error:
            raise MixError(f"{part!r}: a mix is MODEL:BUDGET[:WEIGHT[:ROWS]],... ({error})") from None
        if weight <= 0 or rows < 1 or len(fields) > 4:
            raise MixError(f"{part!r}: weight must be above 0, rows 1 or more: MODEL:BUDGET[:WEIGHT[:ROWS]]")
        shares.append(Share(model, budget, rows, weight))
    return tuple(shares)


def from_trace(
    arrivals: Sequence[trace.Arrival], shares: Sequence[Share], seed: int, *, scale: float = 1.0
) -> list[Request]:
    """Requests at the trace's times; what a line does not say is drawn from the mix.

    ``scale`` times as many a second: time is compressed, bursts stay bursts.
    """
    drawn = _draw(shares, seed)
    requests = []
    for arrival in arrivals:
        share = next(drawn)
        columns = arrival.columns
        requests.append(
            Request(
                arrival.at_s * 1_000.0 / scale,
                str(columns.get("model") or share.model),
                _budget(columns, share.budget_ms),
                _rows(columns, share.rows),
                str(columns.get("tenant") or share.tenant),
            )
        )
    return requests


def generated(times_s: Sequence[float], shares: Sequence[Share], seed: int) -> list[Request]:
    """Requests at given times, drawn from the mix."""
    return from_trace([trace.Arrival(t, {}) for t in times_s], shares, seed)


def asked(
    trace_file: Path | None,
    shares: Sequence[Share],
    seed: int,
    *,
    rate: float | None = None,
    scale: float = 1.0,
    seconds: float | None = None,
) -> list[Request]:
    """What a command line asks for: a trace, or bursty arrivals from the seed where there is none.

    ``rate`` is the mean in requests/s (default: the trace's own, or 50), ``scale`` multiplies it;
    ``seconds`` is how much of it (default: all of the trace, or 60). The same arguments give the same
    requests, to whoever simulates or replays them. Raises `trace.TraceError`.
    """
    if trace_file is None:
        return generated(trace.bursty((rate or 50.0) * scale, seconds or 60.0, seed), shares, seed)
    arrivals = trace.read(trace_file)
    span_s = arrivals[-1].at_s
    if rate is not None and span_s > 0:
        scale *= rate * span_s / max(1, len(arrivals) - 1)
    requests = from_trace(arrivals, shares, seed, scale=scale)
    return [r for r in requests if seconds is None or r.at_ms <= seconds * 1_000.0]


def _draw(shares: Sequence[Share], seed: int) -> Iterator[Share]:
    draw = random.Random(seed)
    weights = [share.weight for share in shares]
    while True:
        yield from draw.choices(shares, weights, k=1024)


def _budget(columns: Mapping[str, Any], default_ms: float) -> float:
    """Column ``budget`` (a duration, or seconds), or ``budget_ms`` or ``latency_budget_ms``."""
    try:
        value = columns.get("budget")
        if value not in (None, ""):
            return units.budget_ms(float(value) if str(value).replace(".", "", 1).isdigit() else value)
        value = columns.get("latency_budget_ms") or columns.get("budget_ms")
        return units.budget_ms(float(value) / 1_000.0) if value not in (None, "") else default_ms
    except ValueError as error:
        raise trace.TraceError(f"a request's budget in the trace: {error}") from None


def _rows(columns: Mapping[str, Any], default: int) -> int:
    value = columns.get("rows")
    if value in (None, ""):
        return default
    try:
        rows = int(value)
    except ValueError:
        rows = 0
    if rows < 1:
        raise trace.TraceError(
            f"rows of a request in the trace: {value!r} is not a whole number of 1 or more"
        )
    return rows
