"""What arrives in a simulation: times from a trace or a generator, the rest from its columns or a mix."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from router import units
from router.simulate import arrivals as trace
from router.simulate import columns
from router.simulate.columns import ColumnError, Said

#: How a part of a mix is written.
FORM = "MODEL:BUDGET[:WEIGHT[:ROWS]][:tenant=NAME][:header.NAME=VALUE][:parameter.NAME=VALUE][:variant=NAME]"

_NONE: Mapping[Any, Any] = {}


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
    variant: str | None = None
    headers: Mapping[bytes, bytes] = field(default_factory=lambda: _NONE)
    parameters: Mapping[str, Any] = field(default_factory=lambda: _NONE)


@dataclass(frozen=True, slots=True)
class Request:
    """One simulated request; ``at_ms`` is virtual time from the start.

    ``row_cost``: what it costs online, in rows of usual size (`router.scheduling.row_cost`); 0 stands for
    ``rows``. ``variant`` is the one that the caller pins. Header names are in lower case. ``epoch_s`` is the
    wall clock when it arrives, None where nobody said.
    """

    at_ms: float
    model: str
    budget_ms: float
    rows: int
    tenant: str = ""
    row_cost: int = 0
    variant: str | None = None
    headers: Mapping[bytes, bytes] = field(default_factory=lambda: _NONE)
    parameters: Mapping[str, Any] = field(default_factory=lambda: _NONE)
    epoch_s: float | None = None


def parse_mix(text: str) -> tuple[Share, ...]:
    """A mix such as ``digits:50ms:0.9,digits:10min:0.1:64:tenant=acme``: model, budget, weight, rows, and
    whatever else a trace's columns may say, by name. Raises `MixError`."""
    return tuple(_share(part.strip()) for part in text.split(","))


def _share(part: str) -> Share:
    fields = part.split(":")
    first = next((at for at, field in enumerate(fields) if "=" in field), len(fields))
    counts, named = fields[:first], fields[first:]
    try:
        model, budget = counts[0], units.budget_ms(counts[1])
        weight = float(counts[2]) if len(counts) > 2 else 1.0
        rows = int(counts[3]) if len(counts) > 3 else 1
        values: dict[str, str] = {}
        for field in named:
            name, sign, value = field.partition("=")
            if not sign or not value:
                raise ValueError(f"{field!r} is not NAME=VALUE; values with ':' or ',' need a trace")
            values[name] = value
        said = columns.read(values)
    except (IndexError, ValueError) as error:
        raise MixError(f"{part!r}: a mix is {FORM},... ({error})") from None
    if weight <= 0 or rows < 1 or len(counts) > 4:
        raise MixError(f"{part!r}: weight must be above 0, rows 1 or more: {FORM}")
    if said.model or said.budget_ms or said.rows:
        raise MixError(f"{part!r}: model, budget and rows have no name in a mix: {FORM}")
    return Share(model, budget, rows, weight, said.tenant or "", said.variant, said.headers, said.parameters)


def from_trace(
    arrivals: Sequence[trace.Arrival],
    shares: Sequence[Share],
    seed: int,
    *,
    scale: float = 1.0,
    start_at_s: float | None = None,
    source: Path | None = None,
    ignored: Collection[str] = (),
) -> list[Request]:
    """Requests at the trace's times; what a line does not say is drawn from the mix.

    ``scale`` times as many a second: time is compressed, bursts stay bursts, and the wall clock of each
    request stays the trace's. ``start_at_s`` is the wall clock at the first arrival, where the trace does
    not say. ``ignored`` columns are passed over. Raises `trace.TraceError`, which names ``source`` and line.
    """
    drawn = _draw(shares, seed)
    typed = source is not None and source.suffix in trace.JSON_LINES
    left_out = {name.lower() for name in ignored}
    requests = []
    for arrival in arrivals:
        share, said = next(drawn), columns.NOTHING
        if arrival.columns:
            try:
                said = columns.read(_wanted(arrival.columns, left_out), typed=typed)
            except ColumnError as error:
                raise trace.TraceError(f"{source or 'the trace'}:{arrival.line}: {error}") from None
        epoch_s = arrival.epoch_s if start_at_s is None else start_at_s + arrival.at_s
        requests.append(_request(arrival.at_s * 1_000.0 / scale, said, share, epoch_s))
    return requests


def _wanted(values: Mapping[str, Any], left_out: Collection[str]) -> Mapping[str, Any]:
    if not left_out:
        return values
    return {name: value for name, value in values.items() if name is None or name.lower() not in left_out}


def _request(at_ms: float, said: Said, share: Share, epoch_s: float | None) -> Request:
    return Request(
        at_ms,
        said.model or share.model,
        share.budget_ms if said.budget_ms is None else said.budget_ms,
        said.rows or share.rows,
        said.tenant or share.tenant,
        0,
        said.variant or share.variant,
        {**share.headers, **said.headers} if said.headers else share.headers,
        {**share.parameters, **said.parameters} if said.parameters else share.parameters,
        epoch_s,
    )


def generated(
    times_s: Sequence[float], shares: Sequence[Share], seed: int, *, start_at_s: float | None = None
) -> list[Request]:
    """Requests at given times, drawn from the mix."""
    return from_trace([trace.Arrival(t, {}) for t in times_s], shares, seed, start_at_s=start_at_s)


def asked(
    trace_file: Path | None,
    shares: Sequence[Share],
    seed: int,
    *,
    rate: float | None = None,
    scale: float = 1.0,
    seconds: float | None = None,
    start_at_s: float | None = None,
    ignored: Collection[str] = (),
) -> list[Request]:
    """What a command line asks for: a trace, or bursty arrivals from the seed where there is none.

    ``rate`` is the mean in requests/s (default: the trace's own, or 50), ``scale`` multiplies it;
    ``seconds`` is how much of it (default: all of the trace, or 60). ``start_at_s`` and ``ignored`` as for
    `from_trace`. The same arguments give the same requests, to whoever simulates or replays them.
    Raises `trace.TraceError`.
    """
    if trace_file is None:
        times_s = trace.bursty((rate or 50.0) * scale, seconds or 60.0, seed)
        return generated(times_s, shares, seed, start_at_s=start_at_s)
    arrivals = trace.read(trace_file)
    span_s = arrivals[-1].at_s
    if rate is not None and span_s > 0:
        scale *= rate * span_s / max(1, len(arrivals) - 1)
    requests = from_trace(
        arrivals, shares, seed, scale=scale, start_at_s=start_at_s, source=trace_file, ignored=ignored
    )
    return [r for r in requests if seconds is None or r.at_ms <= seconds * 1_000.0]


def _draw(shares: Sequence[Share], seed: int) -> Iterator[Share]:
    draw = random.Random(seed)
    weights = [share.weight for share in shares]
    while True:
        yield from draw.choices(shares, weights, k=1024)
