"""MiniLM under a real trace and under three times its capacity: deadlines, goodput, refusals, variants.

One replica, one thread, one sentence a request, budgets of ten times the service time. Everything that is
held against something else was offered the very same arrivals.
"""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimizers import artifact
from optimizers.profile import quantile
from router.bench.run import Replayed
from router.simulate.workload import Request
from tests.benchmarks import live, trace_scale
from tests.benchmarks.live import Target
from tests.benchmarks.report import Figure, at_least, at_most

MODEL, VARIANT = "minilm", "float32"
#: The same model under a policy that asks for 999 of 1,000 in time.
SURE = "minilm-sure"
COMPOSED = "/composed-minilm"
POLICY = """
  minilm:
    artifacts: {folder}
    online: {{variants: [{variants}], replicas: 1, max_batch: {max_batch}, threads: 1}}
  minilm-sure:
    artifacts: {folder}
    online: {{variants: [float32], replicas: 1, max_batch: {max_batch}, threads: 1, in_time: 99.9%}}
"""
TRACE = "azure_llm_2023_code.csv"
_BUDGET_TIMES, _TRACE_LOAD, _BURST_LOAD, _CALM_LOAD = 10.0, 0.9, 3.0, 0.5


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long each part is, seconds."""

    capacity: float = 10.0
    trace: float = 60.0
    trace_rounds: int = 2
    level: float = 20.0
    burst: float = 60.0
    overload_rounds: int = 2
    variants: float = 20.0
    variants_rounds: int = 2
    calm: float = 5.0

    @classmethod
    def smoke(cls) -> Lengths:
        return cls(1.5, 3.0, 1, 2.0, 3.0, 1, 2.0, 1, 1.0)


@dataclass(slots=True)
class Bench:
    """What the parts share, and what they found."""

    target: Target
    lengths: Lengths
    max_batch: int
    variants: Sequence[str]
    budget_ms: float = 0.0
    capacity_per_s: float = 0.0
    runs: dict[str, Any] = field(default_factory=dict)
    promised: dict[str, tuple[int, int]] = field(default_factory=dict)

    def play(
        self,
        name: str,
        requests: Sequence[Request],
        variant: str | None = VARIANT,
        prefix: str = "",
        target: Target | None = None,
    ) -> Replayed:
        """Half of capacity for a while, so that each run finds the server in the same state, then the run."""
        calm, on = poisson(_CALM_LOAD * self.capacity_per_s, self.lengths.calm, 17), target or self.target
        on.play(on.requests(calm, self.budget_ms), variant=variant, prefix=prefix)
        before = on.online()
        found = on.play(requests, variant=variant, prefix=prefix)
        after = on.online()
        told = after["predictions"], before["predictions"]
        if not prefix and on is self.target:
            self.promised[name] = told[0]["held"] - told[1]["held"], told[0]["total"] - told[1]["total"]
        states = {
            at: {k: x[k] for k in ("prediction_margin", "headroom_ms", "hop_ms")}
            for at, x in (("before", before), ("after", after))
        }
        self.runs[name] = {**live.seen(found), "server": states}
        result = found.result
        counts = f"{result.requests:,} requests, {met_per_s(found, requests):.1f}/s in time"
        shares = ", ".join(f"{kind} {result.share(kind):.1%}" for kind in ("late", "refused", "expired"))
        print(f"  {name:<40} {counts}; {shares}", flush=True)
        if found.sender_was_bottleneck:
            print(f"  {name}: the sender was late by {found.lateness_ms_p99:.1f} ms (p99)", flush=True)
        return found


def choose_variants(folder: Path, named: str | None) -> list[str]:
    """The original and those that are worth having beside it: no other is both as good and as fast."""
    found = {path.parent.name: artifact.read(path.parent) for path in folder.glob("*/manifest.json")}
    if VARIANT not in found:
        raise SystemExit(
            f"{folder}: no variant {VARIANT!r}; make bench NAME=variants ARGS='--examples minilm --data DIR'"
        )
    if named:
        return list(dict.fromkeys([VARIANT, *named.split(",")]))
    kept = [VARIANT]
    per_row = {n: min(p.median_ms / p.batch for p in a.manifest.profile.points) for n, a in found.items()}
    drops = {name: a.manifest.quality_drop for name, a in found.items()}
    for name in sorted(found):
        beaten = any(
            drops[o] <= drops[name]
            and per_row[o] <= per_row[name]
            and (drops[o], per_row[o]) != (drops[name], per_row[name])
            for o in found
        )
        if name != VARIANT and not beaten:
            kept.append(name)
    return kept


def deploy(folder: Path, max_batch: int) -> list[Figure]:
    """The composition through ``@serve.batch``, with the same artifact and the same largest batch."""
    from tests.benchmarks import compositions

    compositions.run(COMPOSED, compositions.composed(str(folder / VARIANT), max_batch))
    return []


def calibrate(bench: Bench) -> list[Figure]:
    """Service time of one row and capacity at full batches, on this machine, now."""
    target, lengths = bench.target, bench.lengths
    target.closed_loop(1, lengths.capacity / 2.0, variant=VARIANT)
    alone = sorted(target.closed_loop(1, lengths.capacity / 2.0, variant=VARIANT))
    bench.capacity_per_s = target.capacity_per_s(bench.max_batch, lengths.capacity, VARIANT)
    service_ms = target.profile(VARIANT).predict_ms(1)
    bench.budget_ms = round(_BUDGET_TIMES * service_ms, 1)
    print(
        f"  {bench.capacity_per_s:.0f} rows/s at batches of {bench.max_batch}; one row takes "
        f"{service_ms:.2f} ms (answered in {quantile(alone, 0.5):.2f}); budget {bench.budget_ms:g} ms",
        flush=True,
    )
    return [
        Figure("MiniLM float32, capacity", bench.capacity_per_s, "rows/s", detail=f"batch {bench.max_batch}"),
        Figure("MiniLM float32, service time of one row", service_ms, "ms"),
    ]


def met_per_s(found: Replayed, requests: Sequence[Request]) -> float:
    """Answers in time for each second of arrivals."""
    return found.result.share("met") * found.result.requests / (requests[-1].at_ms / 1e3)


def trace(bench: Bench, traces: Path) -> list[Figure]:
    """A recorded trace whose busiest minute offers 90% of capacity; the composition beside it, in turns.

    Under the policy of a user who wants 999 of 1,000 accepted requests in time, and of one who does not say.
    """
    recorded = live.arrivals(traces, TRACE)
    times, speed = trace_scale.fitted(recorded, _TRACE_LOAD * bench.capacity_per_s, bench.lengths.trace)
    requests = bench.target.requests(times, bench.budget_ms)
    sure = Target(bench.target.url, SURE, bench.target.data)
    careful = sure.requests(times, bench.budget_ms)
    sure.closed_loop(2 * bench.max_batch, bench.lengths.capacity / 2.0, variant=VARIANT)
    plays = {who: list[Replayed]() for who in ("sure", "usual", "composition")}
    for turn in range(1, bench.lengths.trace_rounds + 1):
        plays["sure"].append(bench.play(f"trace, router, in_time 99.9%, {turn}", careful, target=sure))
        plays["composition"].append(bench.play(f"trace, composition, {turn}", requests, None, COMPOSED))
        plays["usual"].append(bench.play(f"trace, router, {turn}", requests))
    rates = {who: [met_per_s(found, requests) for found in each] for who, each in plays.items()}
    kept = {who: [x.result.met_of_accepted for x in plays[who]] for who in ("sure", "usual")}
    shares = {"each": kept, "refused": {who: [x.result.share("refused") for x in plays[who]] for who in kept}}
    detail = {
        "times faster than recorded": speed,
        "seconds": bench.lengths.trace,
        "requests": len(requests),
        "in time, 1/s": rates,
    }

    def over(mine: str, other: str) -> float:
        pairs = zip(rates[mine], rates[other], strict=True)
        return statistics.median(a / max(1e-9, b) for a, b in pairs)

    rows: list[Figure] = []
    for who, policy in (("sure", "in_time 99.9%"), ("usual", "in_time not given")):
        met, ratio = statistics.mean(kept[who]), over(who, "composition")
        rows += [
            at_least(f"trace at 90% of capacity, {policy}: met of accepted", met, "", 0.999, shares),
            at_least("the same: in time per second over @serve.batch", ratio, "ratio", 1.5, detail),
        ]
    name = "in time per second, in_time 99.9% over not given"
    return [*rows, Figure(name, over("sure", "usual"), "ratio", detail=detail)]


def poisson(rate_per_s: float, seconds: float, seed: int) -> list[float]:
    """Arrivals without memory, from a seed."""
    draw = random.Random(seed)
    times = [0.0]
    while times[-1] < seconds:
        times.append(times[-1] + draw.expovariate(rate_per_s))
    return times[:-1]


def overload(bench: Bench) -> list[Figure]:
    """Three times capacity: what is still answered in time, and how soon a refusal comes.

    In turns: each burst is held against the two loads at capacity that it lies between, since the machine's
    own speed changes within minutes by more than what is asked about.
    """
    level = bench.target.requests(poisson(bench.capacity_per_s, bench.lengths.level, 11), bench.budget_ms)
    burst = bench.target.requests(_burst(bench, bench.lengths.burst), bench.budget_ms)
    levels, bursts = [met_per_s(bench.play("at capacity, 0", level), level)], list[float]()
    refusals = list[float]()
    for turn in range(1, bench.lengths.overload_rounds + 1):
        beyond = bench.play(f"3 times capacity, {turn}", burst)
        bursts.append(met_per_s(beyond, burst))
        refusals += [ms for tally in beyond.result.routes.values() for ms in tally.refusals_ms]
        levels.append(met_per_s(bench.play(f"at capacity, {turn}", level), level))
    beside = [statistics.mean(pair) for pair in itertools.pairwise(levels)]
    ratios = [mine / max(1e-9, theirs) for mine, theirs in zip(bursts, beside, strict=True)]
    detail = {"ratios": ratios, "at capacity, 1/s": levels, "at 3 times, 1/s": bursts}
    refusals.sort()
    return [
        at_least(
            "3 times capacity: goodput over that at capacity", statistics.median(ratios), "ratio", 0.9, detail
        ),
        at_most(
            "3 times capacity: p99 of a refusal",
            quantile(refusals, 0.99) if refusals else float("nan"),
            "ms",
            20.0,
            {"refusals": len(refusals), "p50_ms": quantile(refusals, 0.5) if refusals else None},
        ),
    ]


def _burst(bench: Bench, seconds: float) -> list[float]:
    return poisson(_BURST_LOAD * bench.capacity_per_s, seconds, 13)


def variants(bench: Bench, folder: Path) -> list[Figure]:
    """The same burst with all variants allowed, beside each of three alone, in turns.

    "Best" is the one that the policy itself calls so: the most accurate. The original and the fastest are
    told beside it, because a fast enough variant misses nothing of a burst that the original cannot carry.
    """
    manifests = {name: artifact.read(folder / name).manifest for name in bench.variants}
    best = min(manifests, key=lambda name: (manifests[name].quality_drop, name != VARIANT))
    fastest = min(
        manifests, key=lambda name: min(p.median_ms / p.batch for p in manifests[name].profile.points)
    )
    requests = bench.target.requests(_burst(bench, bench.lengths.variants), bench.budget_ms)
    for name in bench.variants:  # what ran so far taught the server one variant's times only
        bench.target.closed_loop(2 * bench.max_batch, bench.lengths.capacity / 5.0, variant=name)
    alone = list(dict.fromkeys((best, fastest, VARIANT)))
    plays = {pin: list[_Play]() for pin in (None, *alone)}
    for turn in range(1, bench.lengths.variants_rounds + 1):
        for pin, found in plays.items():
            found.append(_Play.of(bench.play(f"burst, {pin or 'all variants'}, {turn}", requests, pin)))
    told = {
        pin or "all": {
            "missed": [play.missed for play in found],
            "mean quality drop": statistics.mean(play.quality_drop for play in found),
        }
        for pin, found in plays.items()
    }

    def over(single: str) -> float:
        pairs = zip(plays[None], plays[single], strict=True)
        return statistics.median(mine.missed / max(1e-9, other.missed) for mine, other in pairs)

    return [
        at_most(
            f"burst: misses and refusals, all variants over {best} alone", over(best), "ratio", 0.5, told
        ),
        *(
            Figure(f"the same over {name} alone", over(name), "ratio", detail=told)
            for name in alone
            if name != best
        ),
        Figure("burst: mean quality drop, all variants", told["all"]["mean quality drop"]),
        Figure(f"burst: mean quality drop, {best} alone", told[best]["mean quality drop"]),
    ]


@dataclass(frozen=True, slots=True)
class _Play:
    """The share of a burst that was not answered in time, and what the answers lost on average."""

    missed: float
    quality_drop: float

    @classmethod
    def of(cls, found: Replayed) -> _Play:
        tallies = found.result.routes.values()
        answered = sum(len(tally.latencies_ms) for tally in tallies)
        drop = sum(tally.quality_drop for tally in tallies)
        return cls(1.0 - found.result.share("met"), drop / max(1, answered))


def predictions(bench: Bench) -> list[Figure]:
    """How often the truth lay within the bound that was predicted, by the server's own clock."""
    held = sum(a for a, _ in bench.promised.values())
    total = sum(b for _, b in bench.promised.values())
    share = held / max(1, total)
    detail = {name: {"held": a / max(1, b), "of": b} for name, (a, b) in bench.promised.items()}
    name = "prediction bound of 99%: truth within it"
    return [Figure(name, share, "", "0.98 to 0.999", 0.98 <= share <= 0.999, detail)]
