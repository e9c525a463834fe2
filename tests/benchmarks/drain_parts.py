"""The processes of the drain benchmark: its models, our worker, and a plain loop over the same rows.

``python -m tests.benchmarks.drain_parts``, then one of: ``calibrate`` prints how many layers take 1 ms a
row; ``loop DEPTH ROWS`` prints the seconds of the plain loop; ``worker DEPTH URL`` drains until SIGTERM,
at depth 0 with the model that costs nothing; ``mlp 0 URL`` does so with the MLP's artifact.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optimizers.profile import LatencyProfile, fit
from optimizers.tensors import Tensors, rows_of
from workers.batch.loop import WorkerLoop
from workers.batch.settings import LoopSettings
from workers.execution.batch_model import ArtifactModel, BatchModel
from workers.queue.redis.queue import RedisQueue

WIDTH = 64
MLP = Path("build/bench/mlp")
BATCHES = (1, 4, 16, 64, 128, 256)


class Free:
    """A model that costs nothing."""

    def load(self, variant: str) -> LatencyProfile:
        return fit({1: [0.01], 256: [0.05]})

    def check(self, variant: str, batch: Tensors) -> int:
        return rows_of(batch)

    def run(self, variant: str, batch: Tensors) -> Tensors:
        return {"y": batch["x"][:, :10]}

    def probe(self, variant: str) -> None:
        pass

    def close(self) -> None:
        pass


class OneMsRow(Free):
    """Dense layers of about 1 ms a row on one thread, whatever the batch."""

    def __init__(self, depth: int) -> None:
        rng = np.random.default_rng(0)
        self._inner = rng.standard_normal((WIDTH, 1024), np.float32) / 8
        self._layers = [rng.standard_normal((1024, 1024), np.float32) / 32 for _ in range(8)]
        self._depth = depth

    def run(self, variant: str, batch: Tensors) -> Tensors:
        h: NDArray[np.float32] = np.maximum(batch["x"] @ self._inner, 0)
        for at in range(self._depth):
            h = np.maximum(h @ self._layers[at % len(self._layers)], 0)
        return {"y": h[:, :10]}

    def load(self, variant: str) -> LatencyProfile:
        return fit({n: [self.time_ms(n) for _ in range(3)] for n in BATCHES})

    def time_ms(self, rows: int) -> float:
        x = np.ones((rows, WIDTH), np.float32)
        started = time.perf_counter()
        self.run("v", {"x": x})
        return (time.perf_counter() - started) * 1e3


def calibrated() -> int:
    """How many layers take about 1 ms a row."""
    model = OneMsRow(16)
    return max(1, round(16 * 64 / min(model.time_ms(64) for _ in range(5))))


def loop(model: OneMsRow, rows: int) -> float:
    """Seconds for ``rows`` rows at the batch size that is best per row."""
    profile = model.load("v")
    best = min(BATCHES, key=lambda n: profile.predict_ms(n) / n)
    x = np.random.default_rng(1).standard_normal((rows, WIDTH), np.float32)
    started = time.perf_counter()
    for at in range(0, rows, best):
        model.run("v", {"x": x[at : at + best]})
    return time.perf_counter() - started


async def worker(model: BatchModel, url: str, variant: str = "v") -> None:
    sys.setswitchinterval(0.001)  # as workers/batch/deployment.py does
    queue = RedisQueue.open(url, "bench")
    loop = WorkerLoop(queue, model, variant, f"pid:{os.getpid()}", LoopSettings(max_rows=256))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    running = asyncio.create_task(loop.run())
    await stop.wait()
    await loop.stop()
    await running
    await queue.close()


def main(args: Sequence[str]) -> None:
    if args[0] == "mlp":
        asyncio.run(worker(ArtifactModel(str(MLP), 1), args[2], "float32"))
        return
    if args[0] == "calibrate":
        print(calibrated())
    elif args[0] == "loop":
        print(loop(OneMsRow(int(args[1])), int(args[2])))
    else:
        depth = int(args[1])
        asyncio.run(worker(OneMsRow(depth) if depth else Free(), args[2]))


if __name__ == "__main__":
    main(sys.argv[1:])
