"""What the router's path costs beside the two compositions that people write: ``make bench NAME=overhead``.

The first part of ``NAME=online`` by itself: one cluster, three applications on HAProxy with the same
protocol, codec and model.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.benchmarks import mlp, online_throughput, wrk
from tests.benchmarks.report import write

_ROUTES = """
routes:
  - {name: any, to: online}
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=6.0)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--port", type=int, default=8321)
    chosen = options.parse_args()
    wrk.require()
    folder = Path("build/bench/mlp").absolute()
    mlp.build(folder)
    from router.serving import local

    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        policy = Path(temporary) / "policy.yaml"
        policy.write_text("models:" + online_throughput.POLICY.format(folder=folder) + _ROUTES)
        with local.running(policy, port=chosen.port) as running:
            online_throughput.deploy(folder)
            loads = online_throughput.measure(
                running.url, folder, Path(temporary), chosen.seconds, chosen.rounds, with_peers=False
            )
    write("overhead", online_throughput.figures(loads))


if __name__ == "__main__":
    main()
