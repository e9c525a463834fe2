"""What the demo shows at its end: a table, a picture, and the same figures as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.table import Table

from router.demo.interactive import BUDGET_MS, InteractiveRecord


@dataclass(frozen=True, slots=True)
class QueueSample:
    """The bulk side at one moment: seconds from the start, rows that wait, rows answered so far."""

    at_s: float
    waiting_rows: int
    rows_done: int


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. Latencies in ms; ``met`` and ``accuracy`` are shares of the answered."""

    path: str
    variant: str
    requests: int
    p50_ms: float
    p99_ms: float
    met: float
    accuracy: float
    rejected: int


def rows(records: Sequence[InteractiveRecord], bulk: dict[str, Any]) -> list[Row]:
    """A row for each path and variant; refusals stand in a row of their own."""
    table = []
    for variant in sorted({r.variant for r in records if r.outcome == "done"}):
        done = [r for r in records if r.outcome == "done" and r.variant == variant]
        times = [r.latency_ms for r in done]
        table.append(
            Row(
                "online",
                variant,
                len(done),
                float(np.percentile(times, 50)),
                float(np.percentile(times, 99)),
                sum(r.met for r in done) / len(done),
                sum(r.right for r in done) / len(done),
                0,
            )
        )
    missed = [r for r in records if r.outcome != "done"]
    if missed:
        times = [r.latency_ms for r in missed]
        rejected = sum(r.outcome == "rejected" for r in missed)
        p50, p99 = (float(np.percentile(times, q)) for q in (50, 99))
        table.append(Row("online", "none", len(missed), p50, p99, 0.0, 0.0, rejected))
    if bulk["rows"]:
        table.append(
            Row(
                "batch",
                ", ".join(sorted(bulk["variants"])),
                bulk["rows"],
                bulk["latency_ms_p50"],
                bulk["latency_ms_p99"],
                1.0 - bulk["late"] / bulk["rows"],
                bulk["right"] / bulk["rows"],
                0,
            )
        )
    return table


def table(lines: Sequence[Row]) -> Table:
    rendered = Table(
        title=f"interactive within {BUDGET_MS:g} ms, bulk within 10 min; a bulk row is one image"
    )
    for name in ("path", "variant", "requests", "p50 ms", "p99 ms", "deadlines met", "accuracy", "rejected"):
        rendered.add_column(name, justify="left" if name in ("path", "variant") else "right")
    for line in lines:
        rendered.add_row(
            line.path,
            line.variant,
            f"{line.requests:,}",
            f"{line.p50_ms:,.1f}",
            f"{line.p99_ms:,.1f}",
            f"{line.met:.2%}",
            f"{line.accuracy:.2%}" if line.variant != "none" else "-",
            str(line.rejected),
        )
    return rendered


def figures(
    records: Sequence[InteractiveRecord], bulk: dict[str, Any], problems: Sequence[str]
) -> dict[str, Any]:
    """The run in numbers; ``deadlines_met`` counts refusals and failures as missed."""
    done = [r for r in records if r.outcome == "done"]
    return {
        "budget_ms": BUDGET_MS,
        "table": [asdict(line) for line in rows(records, bulk)],
        "interactive": {
            "requests": len(records),
            "answered": len(done),
            "deadlines_met": sum(r.met for r in records) / max(1, len(records)),
            "rejected": sum(r.outcome == "rejected" for r in records),
            "expired": sum(r.outcome == "expired" for r in records),
            "failed": sum(r.outcome == "failed" for r in records),
            "untrue_to_variant": sum(not r.true_to_variant for r in done),
        },
        "bulk": bulk,
        "problems": list(problems),
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def draw(path: Path, records: Sequence[InteractiveRecord], samples: Sequence[QueueSample]) -> None:
    """Latency against budget over time, queue length, batch throughput: three panels, one time axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, middle, bottom) = pyplot.subplots(
        3, 1, figsize=(10, 8), sharex=True, height_ratios=(3, 1.4, 1.4), constrained_layout=True
    )
    done = [r for r in records if r.outcome == "done"]
    for variant in sorted({r.variant for r in done}):
        mine = [r for r in done if r.variant == variant]
        top.scatter([r.at_s for r in mine], [r.latency_ms for r in mine], s=6, alpha=0.6, label=variant)
    missed = [r for r in records if r.outcome != "done"]
    if missed:
        top.scatter(
            [r.at_s for r in missed],
            [r.latency_ms for r in missed],
            s=18,
            marker="x",
            color="black",
            label="refused or failed",
        )
    top.axhline(BUDGET_MS, color="crimson", linewidth=1, label=f"budget {BUDGET_MS:g} ms")
    top.set_yscale("log")
    top.set_ylabel("interactive latency, ms")
    met = sum(r.met for r in records) / max(1, len(records))
    top.set_title(
        f"{len(records):,} interactive requests, {met:.2%} within {BUDGET_MS:g} ms, bulk beside them"
    )
    top.legend(loc="upper right", ncols=4, fontsize=8)
    times = [s.at_s for s in samples]
    middle.fill_between(times, [s.waiting_rows for s in samples], step="post", alpha=0.5)
    middle.set_ylabel("rows waiting")
    pairs = list(pairwise(samples))
    rate = [(b.rows_done - a.rows_done) / max(1e-9, b.at_s - a.at_s) for a, b in pairs]
    bottom.plot([b.at_s for _, b in pairs], rate, color="tab:green")
    bottom.set_ylabel("bulk rows/s")
    bottom.set_xlabel("seconds")
    for axis in (top, middle, bottom):
        axis.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
