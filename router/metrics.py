"""What the router counts, and how it reaches Ray's Prometheus endpoint.

The hot path adds to plain numbers; a timer hands the differences to ``ray.serve.metrics``, whose calls
cost microseconds each. Names carry no prefix of Ray's: on the endpoint they begin with ``ray_``.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from router import units
from workers.queue import QueueStats

LATENCY_BOUNDS_MS = [1, 2, 5, 10, 20, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 60_000]
BATCH_BOUNDS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
#: Ray exports no infinity: an empty queue's earliest deadline is as far away as a budget can be.
NOTHING_DUE_S = units.MAX_BUDGET_MS / 1_000.0
#: Samples handed to a histogram at a time, thinned evenly beyond it: quantiles need no more, each costs
#: microseconds, and how many there were is counted exactly elsewhere.
_MAX_SAMPLES = 200


class Recorder:
    """Counts of one router process, in plain numbers."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, str, str, str], int] = defaultdict(int)
        self.deadlines: dict[tuple[str, str, bool], int] = defaultdict(int)
        self.predictions: dict[tuple[str, bool], int] = defaultdict(int)
        self.latencies: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        self.batches: dict[tuple[str, str], list[int]] = defaultdict(list)
        #: Batches and rows since the start, by model and variant.
        self.batch_totals: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
        self.queues: dict[str, QueueStats] = {}
        #: How often the queue's server was found to be another process than before.
        self.queue_server_restarts = 0
        #: By model, whether its queue's statistics can be had.
        self.queues_known: dict[str, bool] = {}
        self.fallbacks: dict[tuple[str, str], int] = defaultdict(int)
        self.rescues: dict[tuple[str, str], int] = defaultdict(int)
        self.policy_in_force, self.policy_refused = "", False
        self.tenants: dict[tuple[str, str], int] = defaultdict(int)
        self.shadows: dict[tuple[str, str, str, str], int] = defaultdict(int)

    def request(
        self, model: str, route: str, path: str, variant: str, outcome: str, tenant: str = ""
    ) -> None:
        """One request's end (or acceptance, on the batch path), for its route and for its tenant."""
        self.requests[model, route, path, variant, outcome] += 1
        self.tenant(tenant, outcome)

    def deadline(self, model: str, route: str, met: bool) -> None:
        self.deadlines[model, route, met] += 1

    def prediction(self, model: str, held: bool) -> None:
        """Whether the answer came within what was predicted on arrival."""
        self.predictions[model, held] += 1

    def latency(self, model: str, route: str, path: str, ms: float) -> None:
        self.latencies[model, route, path].append(ms)

    def batch(self, model: str, variant: str, rows: int) -> None:
        self.batches[model, variant].append(rows)
        self.batch_totals[model, variant][0] += 1
        self.batch_totals[model, variant][1] += rows

    def rescue(self, model: str, outcome: str) -> None:
        """A queued job was run online: it ``met`` its deadline, was ``late``, or was ``returned``."""
        self.rescues[model, outcome] += 1

    def tenant(self, tenant: str, outcome: str) -> None:
        """One request of a tenant that ended before its route was known."""
        if tenant:
            self.tenants[tenant, outcome] += 1

    def shadow(self, model: str, route: str, variant: str, outcome: str) -> None:
        """A request was run on a second variant as well: its answer was the ``same``, ``different``, or there
        is none (``skipped`` for want of time, ``failed``)."""
        self.shadows[model, route, variant, outcome] += 1

    def policy(self, digest: str, *, refused: bool) -> None:
        """The policy in force, and whether the file says something else that was refused."""
        self.policy_in_force, self.policy_refused = digest, refused

    def queue_server_restart(self) -> None:
        self.queue_server_restarts += 1

    def queue(self, model: str, stats: QueueStats | None) -> None:
        """A queue as it was seen last; None where its statistics are missing or old."""
        self.queues_known[model] = stats is not None
        if stats is not None:
            self.queues[model] = stats

    def fallback(self, model: str, route: str) -> None:
        """A request of an `auto` route went online because the queue did not take it."""
        self.fallbacks[model, route] += 1


class Publisher:
    """Hands a `Recorder`'s numbers to ``ray.serve.metrics`` about once a second."""

    def __init__(self, recorder: Recorder) -> None:
        from ray import serve

        metrics: Any = serve.metrics

        def counter(name: str, description: str, *tags: str) -> Any:
            return metrics.Counter(name, description=description, tag_keys=tags)

        self._recorder = recorder
        self._sent: dict[tuple[Any, ...], int] = defaultdict(int)
        self._requests = counter(
            "hybrid_requests_total",
            "Requests by outcome",
            *("model", "route", "path", "variant", "outcome"),
        )
        self._deadlines = counter(
            "hybrid_deadlines_total", "Deadlines met and missed, online path", "model", "route", "met"
        )
        self._predictions = counter(
            "hybrid_predictions_total",
            "Online answers by whether they came within the predicted time; 99 of 100 should",
            *("model", "held"),
        )
        self._rescues = counter(
            "hybrid_rescued_total",
            "Queued jobs that were run online because the queue would have been late: met, late, returned",
            *("model", "outcome"),
        )
        self._tenants = counter("hybrid_tenant_requests_total", "Requests by tenant", "tenant", "outcome")
        self._shadows = counter(
            "hybrid_shadow_total",
            "Requests that ran on a second variant as well: same, different, skipped, failed",
            *("model", "route", "variant", "outcome"),
        )
        self._policy = metrics.Gauge(
            "hybrid_policy_refused",
            description="1 where the policy file was changed and refused, so that the old one is in force",
        )
        self._restarts = counter(
            "hybrid_queue_server_restarts_total",
            "Times that the queue's server was found restarted, or replaced by another",
        )
        self._latency = metrics.Histogram(
            "hybrid_latency_ms",
            description="Time from arrival to answer in the router",
            boundaries=LATENCY_BOUNDS_MS,
            tag_keys=("model", "route", "path"),
        )
        self._batch = metrics.Histogram(
            "hybrid_online_batch_rows",
            description="Rows in each online batch",
            boundaries=BATCH_BOUNDS,
            tag_keys=("model", "variant"),
        )
        self._waiting = metrics.Gauge(
            "hybrid_queue_waiting_rows", description="Rows that wait in the queue", tag_keys=("model",)
        )
        self._earliest = metrics.Gauge(
            "hybrid_queue_earliest_deadline_seconds",
            description="Time to the earliest deadline in the queue: negative when passed, 30 days if empty",
            tag_keys=("model",),
        )

    def publish(self) -> None:
        """Send what has come since the last call."""
        recorder = self._recorder
        for key, total in list(recorder.requests.items()):
            tags = dict(zip(("model", "route", "path", "variant", "outcome"), key, strict=True))
            self._count(self._requests, ("request", *key), total, tags)
        for (model, route, met), total in list(recorder.deadlines.items()):
            tags = {"model": model, "route": route, "met": str(met).lower()}
            self._count(self._deadlines, ("deadline", model, route, met), total, tags)
        for (model, held), total in list(recorder.predictions.items()):
            tags = {"model": model, "held": str(held).lower()}
            self._count(self._predictions, ("prediction", model, held), total, tags)
        for (model, outcome), total in list(recorder.rescues.items()):
            self._count(
                self._rescues, ("rescue", model, outcome), total, {"model": model, "outcome": outcome}
            )
        for (tenant, outcome), total in list(recorder.tenants.items()):
            tags = {"tenant": tenant, "outcome": outcome}
            self._count(self._tenants, ("tenant", tenant, outcome), total, tags)
        for shadow, total in list(recorder.shadows.items()):
            tags = dict(zip(("model", "route", "variant", "outcome"), shadow, strict=True))
            self._count(self._shadows, ("shadow", *shadow), total, tags)
        self._policy.set(float(recorder.policy_refused))
        self._count(self._restarts, ("queue_server_restart",), recorder.queue_server_restarts, {})
        for (model, route, path), times in recorder.latencies.items():
            self._observe(self._latency, times, {"model": model, "route": route, "path": path})
        for (model, variant), sizes in recorder.batches.items():
            self._observe(self._batch, sizes, {"model": model, "variant": variant})
        for model, stats in recorder.queues.items():
            self._waiting.set(stats.waiting_rows, tags={"model": model})
            due_ms = stats.earliest_deadline_ms
            left_s = NOTHING_DUE_S if due_ms is None else (due_ms - stats.now_ms) / 1_000.0
            self._earliest.set(left_s, tags={"model": model})

    def _count(self, metric: Any, key: tuple[Any, ...], total: int, tags: dict[str, str]) -> None:
        if total > self._sent[key]:
            metric.inc(total - self._sent[key], tags=tags)
            self._sent[key] = total

    @staticmethod
    def _observe(metric: Any, samples: list[Any], tags: dict[str, str]) -> None:
        taken, samples[:] = samples[:], []
        for value in taken[:: max(1, len(taken) // _MAX_SAMPLES)]:
            metric.observe(value, tags=tags)

    async def run(self, every_s: float = 1.0, sleep: Callable[[float], Any] = asyncio.sleep) -> None:
        """Publish until cancelled."""
        while True:
            await sleep(every_s)
            self.publish()
