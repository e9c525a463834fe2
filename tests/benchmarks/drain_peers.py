"""The same MLP rows through Celery and through RQ, one task per row, as their users write it.

``python -m tests.benchmarks.drain_peers rq URL`` is RQ's worker; Celery's is started as its manual says,
``celery -A tests.benchmarks.drain_peers worker``, with the server's URL in ``BENCH_QUEUE_URL``.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from optimizers import artifact
from optimizers.runner import Runner, load

ARTIFACT = Path("build/bench/mlp/float32")


@cache
def runner() -> Runner:
    """Loaded once per worker process."""
    return load(artifact.read(ARTIFACT))


def infer(row: list[float]) -> list[float]:
    scores: list[float] = runner().run({"x": np.asarray([row], np.float32)})["scores"][0].tolist()
    return scores


def celery_app(url: str) -> Any:
    from celery import Celery  # type: ignore[import-untyped]

    app = Celery("drain_peers", broker=url, backend=url)
    app.conf.update(task_ignore_result=False, broker_connection_retry_on_startup=True)
    app.task(name="infer")(infer)
    return app


if os.environ.get("BENCH_QUEUE_URL"):
    app = celery_app(os.environ["BENCH_QUEUE_URL"])


def rq_worker(url: str) -> None:
    from redis import Redis
    from rq import Queue, SimpleWorker

    connection = Redis.from_url(url)
    # The worker that does not fork for each job: RQ's fastest, so that the comparison is in its favour.
    SimpleWorker([Queue("bench", connection=connection)], connection=connection).work(logging_level="ERROR")


if __name__ == "__main__":
    rq_worker(sys.argv[2])
