"""What `appendfsync always` costs a submit beside `everysec`: ``make bench NAME=fsync``.

No bar: the bundled server runs with `always`, because what is accepted is not lost, and this is its price.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Literal

from tests.benchmarks.report import Figure, write
from workers.queue.embedded import EmbeddedServer
from workers.queue.job import NewJob
from workers.queue.redis.queue import RedisQueue

PAYLOAD = b"x" * 256
MODES: tuple[Literal["always", "everysec"], ...] = ("everysec", "always")


async def submit(url: str, jobs: int, at_once: int, name: str) -> float:
    """Submits a second, ``at_once`` jobs to a call."""
    queue = RedisQueue.open(url, name)
    try:
        begun = time.perf_counter()
        for first in range(0, jobs, at_once):
            batch = [NewJob(f"{name}.{n}", PAYLOAD, 1, 3_600_000) for n in range(first, first + at_once)]
            await queue.submit(batch)
        return jobs / (time.perf_counter() - begun)
    finally:
        await queue.close()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--jobs", type=int, default=2_000)
    chosen = options.parse_args()
    rates: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="fsync-", dir="build") as folder:
        for number in range(chosen.rounds):
            for mode in MODES:
                server = EmbeddedServer.start(Path(folder) / f"{mode}{number}", fsync=mode)
                try:
                    for at_once in (1, 64):
                        rate = asyncio.run(submit(server.url, chosen.jobs, at_once, f"m{at_once}"))
                        rates.setdefault((mode, at_once), []).append(rate)
                finally:
                    server.stop()
    figures = []
    for at_once in (1, 64):
        for mode in MODES:
            values = rates[mode, at_once]
            detail = {"values": values, "us_each": 1e6 / statistics.median(values)}
            title = f"submits with appendfsync {mode}, {at_once} to a call"
            figures.append(Figure(title, statistics.median(values), "1/s", detail=detail))
    write("fsync", figures)


if __name__ == "__main__":
    main()
