"""What the router's path costs beside the two compositions that people write: ``make bench NAME=overhead``.

One cluster, three applications on HAProxy with the same protocol, codec and model; the rounds alternate,
so that a drift of the machine's speed meets all three.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import orjson

from tests.benchmarks import mlp, wrk
from tests.benchmarks.report import Figure, write

POLICY = """
models:
  mlp:
    artifacts: {folder}
    online: {{variants: [float32], replicas: 1, max_batch: 64}}
routes:
  - {{name: any, to: online}}
defaults: {{budget: 1s}}
"""
OURS, COMPOSED, INSIDE = "router", "composition through @serve.batch", "model in the ingress"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=6.0)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--port", type=int, default=8321)
    chosen = options.parse_args()
    wrk.require()
    folder = Path("build/bench/mlp").absolute()
    mlp.build(folder)
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        loads = measure(folder, Path(temporary), chosen.port, chosen.seconds, chosen.rounds)
    write("overhead", figures(loads))


def measure(
    folder: Path, temporary: Path, port: int, seconds: float, rounds: int
) -> dict[tuple[str, int], list[wrk.Load]]:
    """Loads by application and connections, one for each round."""
    from router import server

    policy = temporary / "policy.yaml"
    policy.write_text(POLICY.format(folder=folder))
    loads: dict[tuple[str, int], list[wrk.Load]] = {}
    with server.running(policy, port=port) as running:
        from ray import serve
        from ray.serve.schema import LoggingConfig

        from tests.benchmarks import compositions

        for prefix, application in compositions.deployments(str(folder / "float32")).items():
            serve.run(
                application,
                name=prefix.strip("/"),
                route_prefix=prefix,
                logging_config=LoggingConfig(enable_access_log=False),
            )
        urls = {OURS: running.url, COMPOSED: f"{running.url}/composed", INSIDE: f"{running.url}/inside"}
        lua = script(temporary)
        for url in urls.values():
            wrk.run(f"{url}/v2/models/mlp/infer", 64, 2, lua)  # warm up
        for _ in range(rounds):
            for connections in (64, 1):
                for name, url in urls.items():
                    load = wrk.run(f"{url}/v2/models/mlp/infer", connections, seconds, lua)
                    loads.setdefault((name, connections), []).append(load)
                    print(
                        f"{name:<34} c={connections:<3} {load.requests_per_s:8.0f}/s p50 {load.p50_ms:.2f} ms"
                    )
    return loads


def script(temporary: Path) -> Path:
    """A request of one real row, 256 bytes of float32, binary both ways."""
    image, _ = mlp.digits.test_split()
    raw = image[0].tobytes()
    head = orjson.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "datatype": "FP32",
                    "shape": [1, 64],
                    "parameters": {"binary_data_size": len(raw)},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    )
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }
    return wrk.script(temporary / "mlp.lua", head + raw, headers)


def figures(loads: dict[tuple[str, int], list[wrk.Load]]) -> list[Figure]:
    """Ratios pair by pair, their medians against the bars."""
    rows = []
    for other, bar in ((COMPOSED, 3.0), (INSIDE, 0.8)):
        ours, theirs = loads[OURS, 64], loads[other, 64]
        ratios = [a.requests_per_s / b.requests_per_s for a, b in zip(ours, theirs, strict=True)]
        value = statistics.median(ratios)
        rows.append(
            Figure(
                f"routed throughput at 64 connections over {other}",
                value,
                "ratio",
                f">= {bar:g}",
                value >= bar,
                {
                    "ratios": ratios,
                    "router": [load.requests_per_s for load in ours],
                    "other": [load.requests_per_s for load in theirs],
                    "errors": sum(load.errors for load in ours + theirs),
                },
            )
        )
    ours, inside = loads[OURS, 1], loads[INSIDE, 1]
    value = statistics.median(a.p50_ms / b.p50_ms for a, b in zip(ours, inside, strict=True))
    detail = {"router_ms": [x.p50_ms for x in ours], "other_ms": [x.p50_ms for x in inside]}
    rows.append(
        Figure(f"p50 at one connection over {INSIDE}", value, "ratio", "<= 1.3", value <= 1.3, detail)
    )
    return rows


if __name__ == "__main__":
    main()
