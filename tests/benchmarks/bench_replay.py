"""Simulated against measured: the same arrivals replayed on a live server and played in virtual time.

``make bench NAME=replay ARGS="--traces DIR --data DIR"``: the first folder holds azure_llm_2023_code.csv and
mooncake_conversation.jsonl, the second banking77_test.csv. Each trace is made so fast that its busiest
minute offers 90% of the machine's capacity, and is replayed in several rounds, in turns with the other. The
simulation knows what ``status --json`` tells every five seconds of a round, and nothing else of it; it is
played with several seeds, whose mean is the prediction. ``--smoke`` is a miniature.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optimizers import artifact
from router import policy as policies
from router.bench import compare
from router.bench.compare import Difference
from router.policy.artifacts import read_variants
from router.simulate import observed
from router.simulate.engine import Settings, Simulation
from router.simulate.result import SimulationResult, table
from router.simulate.timing import Costs
from router.simulate.workload import Request
from tests.benchmarks import live, online_load, trace_scale
from tests.benchmarks.live import Target
from tests.benchmarks.online_load import MODEL, VARIANT, Bench, Lengths
from tests.benchmarks.report import Figure, at_most, write

TRACES = ("azure_llm_2023_code.csv", "mooncake_conversation.jsonl")
_ROUTES = """
routes:
  - {name: any, to: online}
"""
_STATUS, _ASKED_EVERY_S = Path("build/bench/replay"), 5.0
_SEED = 7
_SEEDS = range(_SEED, _SEED + 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, required=True, help="folder with the recorded traces")
    parser.add_argument("--data", type=Path, required=True, help="folder with banking77_test.csv")
    parser.add_argument("--artifacts", type=Path, default=Path("build/bench/variants/minilm"))
    parser.add_argument("--load", type=float, default=0.9, help="of capacity, in the busiest minute")
    parser.add_argument("--window", type=float, default=60.0, help="seconds of each trace")
    parser.add_argument("--rounds", type=int, default=3, help="of each trace")
    parser.add_argument("--port", type=int, default=8321)
    parser.add_argument("--smoke", action="store_true", help="seconds only: does it run?")
    chosen = parser.parse_args()
    rows, tables = run(chosen)
    write("replay-smoke" if chosen.smoke else "replay", rows, comparisons=tables)


def run(chosen: argparse.Namespace) -> tuple[list[Figure], dict[str, Any]]:
    from router.serving import local

    minilm = chosen.artifacts.absolute()
    max_batch = live.best_batch(artifact.read(minilm / VARIANT).manifest.profile)
    window_s = 5.0 if chosen.smoke else chosen.window
    rows: list[Figure] = []
    tables: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        policy = Path(temporary) / "policy.yaml"
        model = online_load.POLICY.format(folder=minilm, variants=VARIANT, max_batch=max_batch)
        policy.write_text("models:" + model + _ROUTES)
        data = live.sentences(chosen.data, Path(temporary) / "sentences.jsonl")
        with local.running(policy, port=chosen.port) as running:
            target = Target(running.url, MODEL, data)
            bench = Bench(target, Lengths.smoke() if chosen.smoke else Lengths(), max_batch, [VARIANT])
            rows += online_load.calibrate(bench)
            asked = dict[str, list[Request]]()
            for name in TRACES:
                recorded = live.arrivals(chosen.traces, name)
                times, speed = trace_scale.fitted(recorded, chosen.load * bench.capacity_per_s, window_s)
                asked[name] = target.requests(times, bench.budget_ms, _SEED)
                print(f"{name}: {len(times):,} requests, {speed:.1f} times as fast as recorded", flush=True)
            rounds: dict[str, list[list[Difference]]] = {name: [] for name in TRACES}
            for number in range(1 if chosen.smoke else chosen.rounds):
                for name, requests in asked.items():
                    with _asked(target, f"{name}.{number}", bench.lengths.calm) as statuses:
                        measured = bench.play(f"{name}, {number + 1}", requests, variant=None)
                    simulated = simulate(policy, statuses, requests)
                    print(table({"measured": measured.result, "simulated": simulated[0]}), flush=True)
                    told = [result.to_json() for result in simulated]
                    found = predicted(told, measured.result.to_json())
                    print(compare.table(f"{len(told)} simulations", found), flush=True)
                    rounds[name].append(found)
                    tables[f"{name}, {number + 1}"] = {"measured": live.seen(measured), "simulated": told}
            for name, each in rounds.items():
                rows += figures(name, each)
    return rows, tables


@contextmanager
def _asked(target: Target, name: str, calm_s: float) -> Iterator[list[Path]]:
    """What the server tells of itself, in files, while the load is on that comes after ``calm_s``."""
    statuses: list[Path] = []
    over = threading.Event()

    def ask() -> None:
        over.wait(calm_s)
        while not over.wait(_ASKED_EVERY_S):
            statuses.append(target.save_status(_STATUS / f"{name}.{len(statuses)}.json"))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield statuses
    finally:
        over.set()
        asking.join()
        statuses.append(target.save_status(_STATUS / f"{name}.{len(statuses)}.json"))


def simulate(policy: Path, statuses: Sequence[Path], requests: list[Request]) -> list[SimulationResult]:
    """What `hybrid-router simulate POLICY --observed STATUS ...` plays for the same requests, by seed."""
    rules, each = policies.read(policy), [observed.read(path) for path in statuses]
    seen, measured = observed.mean(each), read_variants(rules, str(policy))
    moments = observed.moments(each, measured, Costs())
    results = []
    for seed in _SEEDS:
        settings = Settings(seed, seen.costs(Costs()), moments=moments)
        results.append(
            Simulation(rules, seen.variants(measured), settings).run(seen.with_row_costs(requests, seed))
        )
    return results


def predicted(simulated: Sequence[Mapping[str, Any]], measured: Mapping[str, Any]) -> list[Difference]:
    """How far the mean of the simulations is from the truth."""
    mean = []
    for alike in zip(*(compare.differences(told, measured) for told in simulated), strict=True):
        values = [d.predicted for d in alike if d.predicted is not None]
        aparts = [d.slow for d in alike if d.slow is not None]
        mean.append(
            alike[0]._replace(
                predicted=statistics.fmean(values) if values else None,
                slow=statistics.fmean(aparts) if aparts else None,
            )
        )
    return mean


def figures(trace: str, rounds: Sequence[Sequence[Difference]]) -> list[Figure]:
    """The four differences that are held to a bar, for one trace: medians over the rounds."""
    wanted = (
        ("deadlines met", "deadlines met", "points", 2.0, 1.0),
        ("any: p50, ms", "p50", "%", 15.0, 100.0),
        ("any: p99, ms", "p99", "%", 25.0, 100.0),
        ("goodput, 1/s", "goodput", "%", 5.0, 100.0),
    )
    rows = []
    for key, shown, unit, bar, times in wanted:
        found = [difference for each in rounds for difference in each if difference.figure == key]
        aparts = [difference.slow for difference in found if difference.slow is not None]
        value = abs(statistics.median(aparts)) * times if len(aparts) == len(rounds) else float("nan")
        detail = [difference._asdict() for difference in found]
        rows.append(at_most(f"{trace}: {shown}, simulated against measured", value, unit, bar, detail))
    return rows


if __name__ == "__main__":
    main()
