"""Prediction beside truth: the figures of two results, and how far the prediction is off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from optimizers.files.text import TextError, read_text


class PredictionError(ValueError):
    """A file that does not hold what ``simulate --json`` writes."""


class Difference(NamedTuple):
    """One figure. ``error`` is in points for a share (``unit`` is ``points``), else a share of the measured
    value (``unit`` is ``relative``); None where one of the two has no value."""

    figure: str
    predicted: float | None
    measured: float | None
    error: float | None
    unit: str


def read(path: Path) -> dict[str, Mapping[str, Any]]:
    """Results by the names under which they were simulated. Raises `PredictionError`."""
    try:
        results = orjson.loads(read_text(path))
        for result in results.values():
            _ = result["deadlines_met"], result["goodput_per_s"], result["routes"].items()
    except (OSError, TextError, orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise PredictionError(f"{path}: not what `hybrid-router simulate --json` writes: {error!r}") from None
    return dict(results)


def differences(predicted: Mapping[str, Any], measured: Mapping[str, Any]) -> list[Difference]:
    """Of two results as `router.simulate.result.SimulationResult.to_json` gives them."""
    comparison = [
        _points("deadlines met", predicted["deadlines_met"], measured["deadlines_met"]),
        _points(
            "deadlines met of accepted",
            predicted["deadlines_met_of_accepted"],
            measured["deadlines_met_of_accepted"],
        ),
        _relative("goodput, 1/s", predicted["goodput_per_s"], measured["goodput_per_s"]),
    ]
    for route, real in measured["routes"].items():
        guess = predicted["routes"].get(route, {})
        for name in ("latency_ms_p50", "latency_ms_p99"):
            figure = f"{route}: {name.removeprefix('latency_ms_')}, ms"
            comparison.append(_relative(figure, guess.get(name), real[name]))
        comparison.append(_points(f"{route}: refused", _share(guess, "refused"), _share(real, "refused")))
    for tenant, real in measured.get("tenants", {}).items():
        guess = predicted.get("tenants", {}).get(tenant, {})
        for outcome in ("met", "refused"):
            figure = f"tenant {tenant}: {outcome}"
            comparison.append(_points(figure, _share(guess, outcome), _share(real, outcome)))
    return comparison


def _share(counts: Mapping[str, Any], outcome: str) -> float | None:
    """Of the requests of one route or tenant; None where there are none."""
    return counts[outcome] / max(1, counts["requests"]) if counts else None


def _points(figure: str, predicted: float | None, measured: float | None) -> Difference:
    error = None if predicted is None or measured is None else 100.0 * (predicted - measured)
    return Difference(figure, predicted, measured, error, "points")


def _relative(figure: str, predicted: float | None, measured: float | None) -> Difference:
    error = None if predicted is None or not measured else predicted / measured - 1.0
    return Difference(figure, predicted, measured, error, "relative")


def table(name: str, differences: list[Difference]) -> str:
    """For a person."""
    rows = [(f"predicted by {name}", "predicted", "measured", "error")]
    rows += [(d.figure, _value(d, d.predicted), _value(d, d.measured), _error(d)) for d in differences]
    widths = [max(len(row[at]) for row in rows) for at in range(4)]
    lines = []
    for first, *cells in rows:
        rest = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join((first.ljust(widths[0]), *rest)))
    return "\n".join(lines)


def _value(difference: Difference, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" if difference.unit == "points" else f"{value:,.1f}"


def _error(difference: Difference) -> str:
    if difference.error is None:
        return "-"
    if difference.unit == "points":
        return f"{difference.error:+.2f} points"
    return f"{difference.error:+.1%}"
