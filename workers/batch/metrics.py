"""What a batch worker publishes as metrics. The state of the queue is published by the routers."""

from __future__ import annotations

from typing import Any

from workers.batch.settings import Meter


class WorkerMetrics:
    """Hands the loop's plain numbers to ``ray.serve.metrics`` about once a second."""

    def __init__(self, model: str, metrics: Any = None) -> None:
        if metrics is None:
            from ray.serve import metrics
        tags = ("model", "variant")
        self._model = model
        self._published: dict[tuple[str, str], int] = {}
        self._rows = metrics.Counter(
            "hybrid_batch_rows_total", "Rows that batch workers ended.", (*tags, "outcome")
        )
        self._size = metrics.Histogram(
            "hybrid_batch_size", "Rows of a batch.", [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024], tags
        )
        self._latency = metrics.Histogram(
            "hybrid_batch_latency_ms",
            "Time of a batch in the model's thread.",
            [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000],
            tags,
        )
        self._orphaned = metrics.Gauge(
            "hybrid_queue_orphaned_jobs",
            "Jobs so far whose record or payload vanished from the queue's server.",
            ("model",),
        )

    def publish(self, meter: Meter, orphaned_jobs: int | None) -> None:
        """Send what has come since the last call. ``orphaned_jobs``: None where the queue cannot be read."""
        for (variant, outcome), rows in meter.rows.items():
            new = rows - self._published.get((variant, outcome), 0)
            if new:
                self._published[variant, outcome] = rows
                self._rows.inc(new, {"model": self._model, "variant": variant, "outcome": outcome})
        while meter.batches:
            variant, rows, ms = meter.batches.popleft()
            tags = {"model": self._model, "variant": variant}
            self._size.observe(rows, tags)
            self._latency.observe(ms, tags)
        if orphaned_jobs is not None:
            self._orphaned.set(orphaned_jobs, {"model": self._model})
