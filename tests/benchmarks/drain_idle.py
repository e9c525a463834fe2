"""A batch worker with nothing to do beside a replica that does nothing, both on Ray Serve."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.drain_parts import Free
from workers.batch.deployment import BatchWorker, deployment
from workers.execution.batch_model import BatchModel


class IdleWorker(BatchWorker):
    """The real worker; ``artifacts`` is a folder, where it leaves its pid."""

    @staticmethod
    def make_model(artifacts: str, threads: int) -> BatchModel:
        leave_pid(Path(artifacts) / "worker.pid")
        return Free()


class Empty:
    """A replica that does nothing."""

    def __init__(self, folder: str) -> None:
        leave_pid(Path(folder) / "empty.pid")


def leave_pid(path: Path) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(str(os.getpid()))
    fresh.replace(path)


@contextlib.contextmanager
def two_replicas(url: str, folder: Path) -> Iterator[dict[str, int]]:
    """Their pids, by "worker" and "empty"."""
    import ray
    from ray import serve

    root = str(Path(__file__).parents[2])
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=2,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )
    try:
        serve.start(proxy_location="Disabled")
        # The same options as the worker's, so that only its own work differs.
        empty = serve.deployment(
            name="empty",
            ray_actor_options={"num_cpus": 0},
            health_check_period_s=0.5,
            max_ongoing_requests=10,
        )(Empty)
        worker = deployment("bench", str(folder), "v", url, kind=IdleWorker)
        serve.run(empty.bind(str(folder)), name="empty", route_prefix=None)
        serve.run(worker, name="worker", route_prefix=None)
        while not all((folder / f"{name}.pid").exists() for name in ("worker", "empty")):
            time.sleep(0.05)
        yield {name: int((folder / f"{name}.pid").read_text()) for name in ("worker", "empty")}
        serve.shutdown()  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()
