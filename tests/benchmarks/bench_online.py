"""Deadlines and what they cost, every figure in one run.

``make bench NAME=online ARGS="--traces DIR --data DIR"``: the first folder holds azure_llm_2023_code.csv,
the second banking77_test.csv. MiniLM's variants are those that ``make bench NAME=variants`` left in
``build/bench/variants/minilm``. ``--smoke`` runs every part in miniature, to see that it works.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from optimizers import artifact
from tests.benchmarks import live, mlp, online_load, online_pure, online_throughput, wrk
from tests.benchmarks.online_load import Bench, Lengths
from tests.benchmarks.report import Figure, write

_ROUTES = """
routes:
  - {name: any, to: online}
defaults: {budget: 1s}
"""
PARTS = ("pure", "throughput", "trace", "overload", "variants")


def main() -> None:
    chosen = _options()
    wrk.require()
    folder = Path("build/bench/mlp").absolute()
    mlp.build(folder)
    rows: list[Figure] = []
    runs: dict[str, Any] = {}
    if "pure" in chosen.parts:
        for part in (online_pure.decisions, online_pure.simulator, online_pure.faults):
            rows += _attempt(part.__name__, functools.partial(part, chosen.smoke))
    if set(chosen.parts) - {"pure"}:
        rows += _served(chosen, folder, runs)
    write("online-smoke" if chosen.smoke else "online", rows, runs=runs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, required=True, help="folder with the recorded traces")
    parser.add_argument("--data", type=Path, required=True, help="folder with banking77_test.csv")
    parser.add_argument("--artifacts", type=Path, default=Path("build/bench/variants/minilm"))
    parser.add_argument("--variants", help="of MiniLM, comma separated (default: the original and the best)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run of wrk")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=8321)
    parser.add_argument("--smoke", action="store_true", help="seconds only: does it run?")
    chosen = parser.parse_args()
    if chosen.smoke:
        chosen.seconds, chosen.rounds = 1.0, 1
    return chosen


def _attempt(name: str, part: Callable[[], Sequence[Figure]]) -> list[Figure]:
    """A part that fails is a figure that does not hold; the others still run."""
    started = time.monotonic()
    print(f"{name}:", flush=True)
    try:
        found = list(part())
    except Exception as error:
        traceback.print_exc()
        return [
            Figure(f"{name}: failed", float("nan"), "", "to run", False, f"{type(error).__name__}: {error}")
        ]
    print(f"  {name} took {time.monotonic() - started:.0f} s", flush=True)
    return found


def _served(chosen: argparse.Namespace, folder: Path, runs: dict[str, Any]) -> list[Figure]:
    """Everything that needs a server: one of them, with both models and the compositions beside it."""
    from router.serving import local

    minilm = chosen.artifacts.absolute()
    variants = online_load.choose_variants(minilm, chosen.variants)
    max_batch = live.best_batch(artifact.read(minilm / online_load.VARIANT).manifest.profile)
    print(f"MiniLM: {', '.join(variants)}; batches of up to {max_batch}", flush=True)
    rows: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        policy = Path(temporary) / "policy.yaml"
        models = (
            "models:"
            + online_throughput.POLICY.format(folder=folder)
            + online_load.POLICY.format(folder=minilm, variants=", ".join(variants), max_batch=max_batch)
        )
        policy.write_text(models + _ROUTES)
        with local.running(policy, port=chosen.port) as running:
            if "throughput" in chosen.parts:
                rows += _attempt("throughput", lambda: _throughput(chosen, running.url, folder, temporary))
            data = live.sentences(chosen.data, Path(temporary) / "sentences.jsonl")
            target = live.Target(running.url, online_load.MODEL, data)
            lengths = Lengths.smoke() if chosen.smoke else Lengths()
            bench = Bench(target, lengths, max_batch, variants)
            rows += _loads(bench, chosen, minilm)
            runs.update(bench.runs)
    return rows


def _throughput(chosen: argparse.Namespace, url: str, folder: Path, temporary: str) -> list[Figure]:
    online_throughput.deploy(folder)
    loads = online_throughput.measure(
        url, folder, Path(temporary), chosen.seconds, chosen.rounds, with_peers=True
    )
    return online_throughput.figures(loads)


def _loads(bench: Bench, chosen: argparse.Namespace, minilm: Path) -> list[Figure]:
    wanted = [part for part in ("trace", "overload", "variants") if part in chosen.parts]
    if not wanted:
        return []
    rows = _attempt("capacity", lambda: online_load.calibrate(bench))
    if not bench.budget_ms:
        return rows  # nothing of the rest can be scaled
    if "trace" in wanted:
        rows += _attempt("composition", lambda: online_load.deploy(minilm, bench.max_batch))
        rows += _attempt("trace", lambda: online_load.trace(bench, chosen.traces))
    if "overload" in wanted:
        rows += _attempt("overload", lambda: online_load.overload(bench))
    if "variants" in wanted:
        rows += _attempt("variants", lambda: online_load.variants(bench, minilm))
    return rows + _attempt("predictions", lambda: online_load.promises(bench))


if __name__ == "__main__":
    main()
