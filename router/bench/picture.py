"""A replay as a picture: what became of the requests of each moment, and how soon the answers came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from router.bench.tally import RequestRecord, ended
from router.simulate.result import OUTCOMES, SimulationResult

_BINS = 240
_COLOURS = {
    "met": "#2f855a",
    "late": "#dd6b20",
    "refused": "#a0aec0",
    "expired": "#c53030",
    "failed": "#1a202c",
}


class PictureError(RuntimeError):
    """Nothing to draw with; the message says what to install."""


def draw(
    path: Path,
    result: SimulationResult,
    records: Sequence[RequestRecord],
    predicted: Mapping[str, Mapping[str, Any]],
) -> None:
    """Outcomes over time, and latencies by route with the predicted p50 and p99 as marks.

    ``predicted`` holds results as `simulate --json` writes them, by name. Raises `PictureError`.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise PictureError("a picture needs matplotlib: pip install 'hybrid-router[optimize]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 4.5), constrained_layout=True)
    _outcomes(left, records)
    _latencies(right, result, predicted)
    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _outcomes(axis: Any, records: Sequence[RequestRecord]) -> None:
    span_s = max(record.request.at_ms for record in records) / 1e3
    width_s = max(1.0, span_s / _BINS)
    counts = Counter((ended(record), int(record.request.at_ms / 1e3 / width_s)) for record in records)
    bins = range(int(span_s / width_s) + 1)
    kinds = [kind for kind in OUTCOMES if any(counts[kind, at] for at in bins)]
    series = [[counts[kind, at] / width_s for at in bins] for kind in kinds]
    colours = [_COLOURS[kind] for kind in kinds]
    axis.stackplot([at * width_s for at in bins], *series, labels=kinds, colors=colours, step="post")
    axis.set_title("what became of the requests, 1/s")
    axis.set_xlabel("seconds at which they were to be sent")


def _latencies(axis: Any, result: SimulationResult, predicted: Mapping[str, Mapping[str, Any]]) -> None:
    for route, tally in sorted(result.routes.items()):
        ordered = sorted(tally.latencies_ms)
        if not ordered:
            continue
        shares = [(at + 1) / len(ordered) for at in range(len(ordered))]
        (line,) = axis.plot(ordered, shares, label=f"measured: {route}", linewidth=1)
        for name, simulated in predicted.items():
            guess = simulated["routes"].get(route, {})
            marks = [(guess.get("latency_ms_p50"), 0.5), (guess.get("latency_ms_p99"), 0.99)]
            known = [(ms, share) for ms, share in marks if ms is not None]
            if known:
                label = f"predicted by {name}: {route}"
                axis.scatter(*zip(*known, strict=True), color=line.get_color(), marker="x", label=label)
    axis.set_xscale("log")
    axis.set_title("answered within")
    axis.set_xlabel("ms")
