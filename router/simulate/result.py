"""What a simulation found: counts, latencies and time series, as numbers, a table and a picture."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Outcomes. ``met`` is answered by its deadline; the others are answered late, refused, dropped or lost.
OUTCOMES = ("met", "late", "refused", "expired", "failed")
#: Why requests are refused, in words.
REFUSALS = {
    "miss": "predicted to miss the deadline",
    "full": "no room",
    "quota": "over the tenant's quota",
    "unserved": "no way in the policy",
    "forbidden": "not allowed to the tenant",
    "size": "too large",
}
#: What stands for the route of those that are refused before there is one, and for no tenant.
NONE = "(none)"


@dataclass(slots=True)
class OutcomeTally:
    """The requests of one route, or of one tenant. ``refused_for`` counts refusals by their reason, one of
    `REFUSALS`."""

    outcomes: Counter[str] = field(default_factory=Counter)
    variants: Counter[str] = field(default_factory=Counter)
    latencies_ms: array[float] = field(default_factory=lambda: array("d"))
    refusals_ms: array[float] = field(default_factory=lambda: array("d"))
    refused_for: Counter[str] = field(default_factory=Counter)
    within_bound: int = 0
    predicted: int = 0
    quality_drop: float = 0.0

    def answered(self, latency_ms: float, met: bool, variant: str, drop: float, held: bool) -> None:
        """``held``: it came within what was predicted on arrival."""
        self.outcomes["met" if met else "late"] += 1
        self.variants[variant] += 1
        self.latencies_ms.append(latency_ms)
        self.quality_drop += drop
        self.predicted += 1
        self.within_bound += held

    def ended(self, outcome: str, after_ms: float, refused_for: str = "") -> None:
        """Without an answer: refused, expired or failed. What was accepted and expired broke its promise."""
        self.outcomes[outcome] += 1
        self.predicted += outcome == "expired"
        if outcome == "refused":
            self.refusals_ms.append(after_ms)
            self.refused_for[refused_for] += 1


@dataclass(slots=True)
class LoadSample:
    """The system at one moment of virtual time; how busy (0 to 1) it was since the one before."""

    at_s: float
    online_waiting: int
    queue_rows: int
    online_busy: float
    batch_busy: float


@dataclass(slots=True)
class SimulationResult:
    """A finished run. ``seconds`` is virtual time until the last request ended. ``tenants`` are counted where
    ``by_tenant`` says so; ``not_played`` are sentences on what was left out."""

    seed: int
    seconds: float = 0.0
    routes: dict[str, OutcomeTally] = field(default_factory=dict)
    by_tenant: bool = False
    tenants: dict[str, OutcomeTally] = field(default_factory=dict)
    shadows: Counter[str] = field(default_factory=Counter)
    not_played: list[str] = field(default_factory=list)
    samples: list[LoadSample] = field(default_factory=list)
    busy_s: dict[str, float] = field(default_factory=dict)
    capacity_s: dict[str, float] = field(default_factory=dict)
    batches: Counter[str] = field(default_factory=Counter)
    batch_rows: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def route(self, name: str) -> OutcomeTally:
        tally = self.routes.get(name)
        if tally is None:
            tally = self.routes[name] = OutcomeTally()
        return tally

    def tallies(self, route: str, tenant: str) -> Iterator[OutcomeTally]:
        """Where a request of this route and tenant counts; both may be empty."""
        yield self.route(route or NONE)
        if self.by_tenant:
            name = tenant or NONE
            if name not in self.tenants:
                self.tenants[name] = OutcomeTally()
            yield self.tenants[name]

    @property
    def refused_for(self) -> Counter[str]:
        """All refusals by their reason, the most frequent first."""
        total: Counter[str] = Counter()
        for tally in self.routes.values():
            total += tally.refused_for
        return Counter(dict(total.most_common()))

    @property
    def requests(self) -> int:
        return sum(sum(tally.outcomes.values()) for tally in self.routes.values())

    def share(self, outcome: str) -> float:
        """The share of all requests with this outcome."""
        return sum(t.outcomes[outcome] for t in self.routes.values()) / max(1, self.requests)

    @property
    def met_of_accepted(self) -> float:
        """Deadlines met among what was not refused."""
        refused = sum(t.outcomes["refused"] for t in self.routes.values())
        met = sum(t.outcomes["met"] for t in self.routes.values())
        return met / max(1, self.requests - refused)

    def to_json(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
            "requests": self.requests,
            "deadlines_met": self.share("met"),
            "deadlines_met_of_accepted": self.met_of_accepted,
            "goodput_per_s": self.share("met") * self.requests / max(1e-9, self.seconds),
            "refused_for": dict(self.refused_for),
            "routes": {name: _tally_json(tally) for name, tally in sorted(self.routes.items())},
            "tenants": {name: _tally_json(tally) for name, tally in sorted(self.tenants.items())},
            "utilisation": {
                name: self.busy_s.get(name, 0.0) / capacity
                for name, capacity in sorted(self.capacity_s.items())
                if capacity > 0
            },
            "mean_batch_rows": {
                name: self.batch_rows[name] / count for name, count in sorted(self.batches.items()) if count
            },
            "shadows": dict(sorted(self.shadows.items())),
            "not_played": self.not_played,
            "violations": self.violations,
        }


def _tally_json(tally: OutcomeTally) -> dict[str, Any]:
    times = sorted(tally.latencies_ms)
    answered = max(1, len(times))
    return {
        "requests": sum(tally.outcomes.values()),
        **{name: tally.outcomes[name] for name in OUTCOMES},
        "refused_for": dict(sorted(tally.refused_for.items())),
        "latency_ms_p50": _quantile(times, 0.5),
        "latency_ms_p99": _quantile(times, 0.99),
        "refusal_ms_p99": _quantile(sorted(tally.refusals_ms), 0.99),
        "within_predicted_bound": tally.within_bound / max(1, tally.predicted),
        "mean_quality_drop": tally.quality_drop / answered,
        "variants": dict(sorted(tally.variants.items())),
    }


def _quantile(ordered: Sequence[float], q: float) -> float | None:
    return ordered[min(len(ordered) - 1, math.ceil(q * len(ordered)) - 1)] if ordered else None


def table(results: Mapping[str, SimulationResult]) -> str:
    """For a person: a row for each policy and route, then for each tenant, then what the replicas did."""
    report = {name: result.to_json() for name, result in results.items()}
    blocks = [_block("route", {name: each["routes"] for name, each in report.items()})]
    if any(each["tenants"] for each in report.values()):
        blocks.append(_block("tenant", {name: each["tenants"] for name, each in report.items()}))
    beneath = [f"{name}: {line}" for name, each in report.items() for line in _beneath(each)]
    return "\n\n".join([*blocks, "\n".join(beneath)])


def _block(what: str, report: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [["policy", what, "requests", *OUTCOMES, "p50 ms", "p99 ms", "in bound", "drop", "variants"]]
    rows += [_row(name, part, found) for name, parts in report.items() for part, found in parts.items()]
    allowance = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if at < 2 else cell.rjust(w)
            for at, (cell, w) in enumerate(zip(row, allowance, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _beneath(report: Mapping[str, Any]) -> Iterator[str]:
    use = ", ".join(f"{side} {share:.0%} busy" for side, share in report["utilisation"].items())
    yield (
        f"{report['deadlines_met']:.2%} of deadlines met, "
        f"{report['goodput_per_s']:,.1f}/s in time{'; ' if use else ''}{use}"
    )
    if report["refused_for"]:
        reasons = (f"{count:,} {REFUSALS.get(why, why)}" for why, count in report["refused_for"].items())
        yield f"refused: {', '.join(reasons)}"
    if report["shadows"]:
        yield f"shadows: {', '.join(f'{count:,} {how}' for how, count in report['shadows'].items())}"
    yield from (f"not played: {text}" for text in report["not_played"])
    yield from (f"BROKEN: {text}" for text in report["violations"])


def _row(name: str, route: str, report: Mapping[str, Any]) -> list[str]:
    total = max(1, report["requests"])
    answered = max(1, sum(report["variants"].values()))
    return [
        name,
        route,
        f"{report['requests']:,}",
        *(f"{report[outcome] / total:.2%}" for outcome in OUTCOMES),
        _ms(report["latency_ms_p50"]),
        _ms(report["latency_ms_p99"]),
        f"{report['within_predicted_bound']:.1%}",
        f"{report['mean_quality_drop']:.4f}",
        ", ".join(f"{variant} {count / answered:.0%}" for variant, count in report["variants"].items()),
    ]


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def draw(path: Path, results: Mapping[str, SimulationResult]) -> None:
    """Waiting work and use over virtual time, and the latency distribution; a colour for each policy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(12, 7), constrained_layout=True)
    panels: tuple[tuple[Any, str, Callable[[LoadSample], float]], ...] = (
        (axes[0, 0], "requests waiting online", lambda s: s.online_waiting),
        (axes[0, 1], "rows waiting in the queue", lambda s: s.queue_rows),
        (axes[1, 0], "online replicas, share busy", lambda s: s.online_busy),
    )
    for name, result in results.items():
        times = [s.at_s for s in result.samples]
        for axis, title, value in panels:
            axis.plot(times, [value(s) for s in result.samples], label=name, linewidth=1)
            axis.set_title(title)
            axis.set_xlabel("seconds")
        for route, tally in sorted(result.routes.items()):
            ordered = sorted(tally.latencies_ms)
            if ordered:
                shares = [(i + 1) / len(ordered) for i in range(len(ordered))]
                axes[1, 1].plot(ordered, shares, label=f"{name}: {route}", linewidth=1)
    axes[1, 1].set_xscale("log")
    axes[1, 1].set_title("answered within")
    axes[1, 1].set_xlabel("ms")
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
