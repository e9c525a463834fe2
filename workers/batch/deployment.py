"""The batch worker: a Ray Serve deployment that works off one model's queue until it is stopped.

It takes no requests. Serve starts it, shows it, restarts it when :meth:`BatchWorker.check_health`
raises, and scales it; the loop itself is :class:`workers.batch.loop.WorkerLoop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import threading
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workers.batch.loop import WorkerLoop
from workers.batch.metrics import WorkerMetrics
from workers.batch.queue_poll import OrphanLog
from workers.batch.settings import LoopSettings
from workers.execution.batch_model import ArtifactModel, BatchModel
from workers.execution.work_limits import WorkLimit
from workers.queue.contract import DeadlineQueue, QueueIncompatible, QueueUnavailable
from workers.queue.redis.queue import RedisQueue
from workers.queue.redis.server_check import check_server
from workers.queue.settings import QueueSettings, settings_from

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingConfig

logger = logging.getLogger("ray.serve")

_PUBLISH_S = 1.0
#: For the batch that runs when a worker is to stop. After that the worker is killed, and its jobs come back
#: when their leases run out.
_LAST_BATCH_S = 60.0
_CHECK_S = 60.0
#: How often the interpreter lets the event loop in while the model's thread holds it.
_SWITCH_INTERVAL_S = 0.001


class BatchWorker:
    """The loop as a Serve deployment. All arguments are plain values, so that a config file can hold them.

    ``queue_url``: see :func:`workers.queue.redis.client.connect`; prefer ``file:`` where it has a password.
    ``queue_settings``: fields of :class:`workers.queue.settings.QueueSettings`, ``retry`` as a mapping too;
    they must be the same for everybody who uses the queue. ``layout``: see
    `workers.queue.redis.queue.RedisQueue`. ``hung_after_ms``: how long one batch may compute, or be blocked
    (default: by the variant's profile).
    """

    def __init__(
        self,
        model: str,
        artifacts: str,
        variant: str,
        queue_url: str,
        *,
        namespace: str = "hr",
        layout: str | None = None,
        max_batch: int | None = None,
        lease_ms: int = 10_000,
        hung_after_ms: float | None = None,
        threads: int = 1,
        sched_idle: bool = True,
        queue_settings: Mapping[str, Any] | None = None,
    ) -> None:
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        if sched_idle:
            # The model's thread is idle class; claiming and settling still yield to the online path.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        self._queue = self.open_queue(
            queue_url, model, settings_from(queue_settings or {}), namespace, layout
        )
        worker = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._worker_loop = WorkerLoop(
            self._queue,
            self.make_model(artifacts, threads),
            variant,
            worker,
            self.make_settings(lease_ms, max_batch, hung_after_ms),
            sched_idle=sched_idle,
        )
        self._metrics = WorkerMetrics(model)
        self._orphans = OrphanLog(model)
        self._task = asyncio.get_running_loop().create_task(
            self._worker_loop.run(), name=f"{model} batch worker"
        )
        self._helpers = [
            asyncio.get_running_loop().create_task(body)
            for body in (self._publish(), self._check_server(queue_url))
        ]
        logger.info("batch worker %s drains %s with variant %s", worker, model, variant)

    @staticmethod
    def open_queue(
        url: str, model: str, settings: QueueSettings, namespace: str, layout: str | None
    ) -> DeadlineQueue:
        """What the loop drains."""
        return RedisQueue.open(url, model, settings, namespace=namespace, layout=layout)

    @staticmethod
    def make_model(artifacts: str, threads: int) -> BatchModel:
        """What the loop runs."""
        return ArtifactModel(artifacts, threads)

    @staticmethod
    def make_settings(lease_ms: int, max_batch: int | None, hung_after_ms: float | None) -> LoopSettings:
        """How the loop works."""
        settings = LoopSettings(lease_ms=lease_ms, max_rows=max_batch)
        if hung_after_ms is None:
            return settings
        limit = WorkLimit(hung_after_ms, hung_after_ms)
        return replace(settings, limit=lambda predicted_ms: limit)

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        if self._task.done():
            error = None if self._task.cancelled() else self._task.exception()
            raise RuntimeError(f"the worker loop ended: {error!r}") from error

    async def __del__(self) -> None:
        await self._worker_loop.stop()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self._task
        for helper in self._helpers:
            helper.cancel()
        await asyncio.gather(*self._helpers, return_exceptions=True)
        await self._queue.close()
        if self._worker_loop.hung_reason:
            # Libraries join their threads when a process ends; one that hangs would keep the process alive.
            logging.shutdown()
            os._exit(1)

    async def _check_server(self, url: str) -> None:
        """Log what is wrong with the queue's server: its settings may change while this runs."""
        while True:
            with contextlib.suppress(QueueUnavailable):
                try:
                    problems = await check_server(url)
                except QueueIncompatible as error:
                    problems = [str(error)]
                for problem in problems:
                    logger.error("the queue's server can lose jobs or results: %s", problem)
            await asyncio.sleep(_CHECK_S)

    async def _publish(self) -> None:
        while True:
            await asyncio.sleep(_PUBLISH_S)
            orphaned_jobs = None
            with contextlib.suppress(QueueUnavailable):
                stats = await self._queue.stats()
                self._orphans.note(stats)
                orphaned_jobs = stats.totals["orphaned"]
            self._metrics.publish(self._worker_loop.meter, orphaned_jobs)


def deployment(
    model: str,
    artifacts: str,
    variant: str,
    queue_url: str,
    *,
    workers: int = 1,
    autoscaling: AutoscalingConfig | None = None,
    kind: type[BatchWorker] = BatchWorker,
    **options: Any,
) -> Any:
    """The bound Serve deployment ``{model}-batch``; ``options`` are :class:`BatchWorker`'s.

    ``kind`` may be a subclass with a model of its own. Ray reserves no CPU: batch work takes what the online
    replicas leave.
    """
    from ray import serve

    decorated = serve.deployment(
        name=f"{model}-batch",
        ray_actor_options={"num_cpus": 0},
        num_replicas=None if autoscaling else workers,
        autoscaling_config=autoscaling,
        max_ongoing_requests=10,
        health_check_period_s=0.5,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=_LAST_BATCH_S,
        graceful_shutdown_wait_loop_s=0.1,
    )(kind)
    return decorated.bind(model, artifacts, variant, queue_url, **options)
