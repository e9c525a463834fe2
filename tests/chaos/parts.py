"""What the chaos run's processes are made of: a model with poison rows and a queue that keeps a log."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimizers.profile import LatencyProfile, fit
from optimizers.tensors import Tensors, pack, rows_of
from workers.batch.deployment import BatchWorker
from workers.batch.settings import LoopSettings
from workers.execution.batch_model import BatchModel
from workers.execution.work_limits import WorkLimit
from workers.queue.contract import DeadlineQueue, Done, Outcome
from workers.queue.job import Lease, NewJob
from workers.queue.redis.queue import RedisQueue
from workers.queue.settings import QueueSettings

MODEL = "chaos"
LEASE_MS = 2000
SETTINGS: dict[str, Any] = {"keep_ms": 3_600_000, "max_jobs": 200_000}
#: What a job's rows do to the model, by the value in them: fail it, or never let it return.
POISON, HANG = "poison", "hang"
_VALUES = {POISON: np.nan, HANG: np.inf}
#: How a worker's process ends when its model hangs.
HUNG = 75
WIDTH = 16
_BATCH_MS = 3.0


class PoisonModel:
    """Doubles its input in about 3 ms a batch; a row with NaN makes it fail, one with infinity never ends."""

    def load(self, variant: str) -> LatencyProfile:
        return fit({1: [_BATCH_MS], 64: [_BATCH_MS * 2]})

    def check(self, variant: str, batch: Tensors) -> int:
        return rows_of(batch)

    def run(self, variant: str, batch: Tensors) -> Tensors:
        time.sleep(_BATCH_MS / 1000)
        if np.isinf(batch["x"]).any():
            threading.Event().wait()
        if np.isnan(batch["x"]).any():
            raise ValueError("poison")
        return {"y": batch["x"] * 2}

    def probe(self, variant: str) -> None:
        self.run(variant, {"x": np.zeros((1, WIDTH), np.float32)})

    def close(self) -> None:
        pass


def loop_settings() -> LoopSettings:
    """A hang is noticed in seconds, yet a worker that was stopped past its lease is not taken for one."""
    limit = WorkLimit(on_cpu_ms=30_000.0, blocked_ms=2.0 * LEASE_MS)
    return LoopSettings(LEASE_MS, idle_s=5.0, watch_s=0.5, limit=lambda predicted_ms: limit)


class Log:
    """Lines of JSON, each written at once: what was logged before a kill is there after it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, **event: Any) -> None:
        os.write(self._file, json.dumps(event).encode() + b"\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a kill can leave half of one at the end."""
    events = []
    for line in path.read_bytes().splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


class LoggedQueue(RedisQueue):
    """Writes down each claim and each settlement that won."""

    log: Log

    async def claim(self, n: int, lease_ms: int, worker: str, *, max_rows: int | None = None) -> list[Lease]:
        leases = await super().claim(n, lease_ms, worker, max_rows=max_rows)
        if leases:
            at_ms = leases[0].lease_until_ms - lease_ms
            self.log.write(kind="claim", at_ms=at_ms, jobs=[[x.id, x.deadline_ms, x.lost] for x in leases])
        return leases

    async def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        won = await super().settle(outcomes)
        done = [[o.id, o.token] for o, w in zip(outcomes, won, strict=True) if w and isinstance(o, Done)]
        if done:
            self.log.write(kind="done", jobs=done)
        return won


def open_logged(url: str, settings: QueueSettings, folder: Path, namespace: str = "hr") -> LoggedQueue:
    queue = LoggedQueue.open(url, MODEL, settings, namespace=namespace)
    assert isinstance(queue, LoggedQueue)
    queue.log = Log(folder / f"worker-{os.getpid()}.log")
    return queue


class ChaosReplica(BatchWorker):
    """The Serve replica of the run; ``artifacts`` is the run's folder, where it leaves its pid."""

    @staticmethod
    def make_model(artifacts: str, threads: int) -> BatchModel:
        fresh = Path(artifacts) / f"replica.pid.{os.getpid()}"
        fresh.write_text(str(os.getpid()))
        fresh.replace(Path(artifacts) / "replica.pid")  # whole at once: the run reads it at any moment
        return PoisonModel()

    @staticmethod
    def make_settings(lease_ms: int, max_batch: int | None, hung_after_ms: float | None) -> LoopSettings:
        return loop_settings()

    @staticmethod
    def open_queue(
        url: str, model: str, settings: QueueSettings, namespace: str, layout: str | None
    ) -> DeadlineQueue:
        folder = Path(url.removeprefix("file://")).parent.parent
        return open_logged(url, settings, folder, namespace)


def make_job(id: str, value: float | str, budget_ms: int) -> NewJob:
    """A job of one row with this value, or one of a kind that harms: `POISON` or `HANG`."""
    x = np.full((1, WIDTH), _VALUES[value] if isinstance(value, str) else value, np.float32)
    return NewJob(id, pack({"x": x}), 1, budget_ms)
