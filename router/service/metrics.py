"""What the router counts, and how it reaches Ray's Prometheus endpoint.

The hot path adds to plain numbers; a timer hands the differences to ``ray.serve.metrics``, whose calls
cost microseconds each. Names carry no prefix of Ray's: on the endpoint they begin with ``ray_``.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from router import units
from router.policy.changes import State
from workers.queue.contract import QueueStats

LATENCY_BOUNDS_MS = [1, 2, 5, 10, 20, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 60_000]
BATCH_BOUNDS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
#: Ray exports no infinity: an empty queue's earliest deadline is as far away as a budget can be.
NOTHING_DUE_S = units.MAX_BUDGET_MS / 1_000.0
#: Samples handed to a histogram at a time, thinned evenly beyond it: quantiles need no more, each costs
#: microseconds, and how many there were is counted exactly elsewhere.
_MAX_SAMPLES = 200
#: How many calls of metrics, of some microseconds each, a request may have to wait for.
_CALLS_AT_ONCE = 16


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
        #: How often the queue's server proved to be another process than before.
        self.queue_server_restarts = 0
        #: By model, whether its queue's statistics can be had.
        self.queues_known: dict[str, bool] = {}
        self.fallbacks: dict[tuple[str, str], int] = defaultdict(int)
        self.rescues: dict[tuple[str, str], int] = defaultdict(int)
        self.policy_in_force = ""
        self.policy_state: State = "applied"
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

    def policy(self, digest: str, state: State) -> None:
        """The policy in force, and what became of the file as it is now."""
        self.policy_in_force, self.policy_state = digest, state

    def queue_server_restart(self) -> None:
        self.queue_server_restarts += 1

    def queue(self, model: str, stats: QueueStats | None) -> None:
        """A queue as last read; None where its statistics are missing or old."""
        self.queues_known[model] = stats is not None
        if stats is not None:
            self.queues[model] = stats

    def fallback(self, model: str, route: str) -> None:
        """A request of an `auto` route went online because the queue did not take it."""
        self.fallbacks[model, route] += 1


#: Counters: what of the `Recorder`, the metric's name, what it says, and its tags in the order of the key.
COUNTERS = (
    (
        "requests",
        "hybrid_requests_total",
        "Requests by outcome",
        ("model", "route", "path", "variant", "outcome"),
    ),
    ("tenants", "hybrid_tenant_requests_total", "Requests by tenant", ("tenant", "outcome")),
    (
        "deadlines",
        "hybrid_deadlines_total",
        "Deadlines met and missed, online path",
        ("model", "route", "met"),
    ),
    (
        "predictions",
        "hybrid_predictions_total",
        "Online answers by whether they came within the predicted time; 99 of 100 should",
        ("model", "held"),
    ),
    (
        "rescues",
        "hybrid_rescued_total",
        "Queued jobs that were run online because the queue would have been late: met, late, returned",
        ("model", "outcome"),
    ),
    (
        "fallbacks",
        "hybrid_queue_fallbacks_total",
        "Requests that could go either way and ran online because the queue did not take them",
        ("model", "route"),
    ),
    (
        "shadows",
        "hybrid_shadow_total",
        "Requests that ran on a second variant as well: same, different, skipped, failed",
        ("model", "route", "variant", "outcome"),
    ),
)
#: Distributions, likewise.
HISTOGRAMS = (
    (
        "latencies",
        "hybrid_latency_ms",
        "Time from arrival to answer in the router",
        LATENCY_BOUNDS_MS,
        ("model", "route", "path"),
    ),
    (
        "batches",
        "hybrid_online_batch_rows",
        "Rows in each online batch",
        BATCH_BOUNDS,
        ("model", "variant"),
    ),
)
GAUGES = (
    (
        "hybrid_policy_refused",
        "1 where the policy file was changed and refused, so that the old one is in force",
        (),
    ),
    (
        "hybrid_policy_needs_redeploy",
        "1 where the policy file was changed in what only other processes can take over, until there are any",
        (),
    ),
    (
        "hybrid_queue_known",
        "1 where the queue's statistics can be had, 0 where its server does not answer",
        ("model",),
    ),
    ("hybrid_queue_waiting_rows", "Rows that wait in the queue, as last read", ("model",)),
    (
        "hybrid_queue_earliest_deadline_seconds",
        "Time to the earliest deadline in the queue: negative when passed, 30 days if empty",
        ("model",),
    ),
)


class Publisher:
    """Hands a `Recorder`'s numbers to ``ray.serve.metrics`` about once a second.

    That is done on the loop that serves requests, so it makes way after every few calls.
    """

    def __init__(self, recorder: Recorder, metrics: Any = None) -> None:
        if metrics is None:
            from ray import serve

            metrics = serve.metrics
        self._recorder = recorder
        self._sent: dict[tuple[Any, ...], int] = defaultdict(int)
        self._counters = [
            (counted, tags, metrics.Counter(name, description=text, tag_keys=tags))
            for counted, name, text, tags in COUNTERS
        ]
        self._restarts = metrics.Counter(
            "hybrid_queue_server_restarts_total",
            description="Times that the queue's server was restarted, or replaced by another",
        )
        self._histograms = [
            (sampled, tags, metrics.Histogram(name, description=text, boundaries=bounds, tag_keys=tags))
            for sampled, name, text, bounds, tags in HISTOGRAMS
        ]
        self._gauges = {
            name: metrics.Gauge(name, description=text, tag_keys=tags) for name, text, tags in GAUGES
        }

    async def publish(self) -> None:
        """Send what has come since the last call."""
        for calls, _ in enumerate(self._calls(), 1):
            if calls % _CALLS_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _calls(self) -> Iterator[None]:
        """Makes one call of a metric at a time. Requests may be counted between two."""
        recorder = self._recorder
        for counted, names, metric in self._counters:
            for key, total in list(getattr(recorder, counted).items()):
                yield from self._count(metric, counted, names, key, total)
        yield from self._count(self._restarts, "restarts", (), (), recorder.queue_server_restarts)
        for sampled, names, metric in self._histograms:
            for key, samples in list(getattr(recorder, sampled).items()):
                tags, taken = _tags(names, key), samples[:]
                samples.clear()
                for value in taken[:: math.ceil(len(taken) / _MAX_SAMPLES) or 1]:
                    yield metric.observe(value, tags=tags)
        for name, value, tags in self._levels():
            yield self._gauges[name].set(value, tags=tags)

    def _levels(self) -> Iterator[tuple[str, float, dict[str, str]]]:
        recorder = self._recorder
        yield "hybrid_policy_refused", float(recorder.policy_state == "refused"), {}
        yield "hybrid_policy_needs_redeploy", float(recorder.policy_state == "needs redeploy"), {}
        for model, known in list(recorder.queues_known.items()):
            yield "hybrid_queue_known", float(known), {"model": model}
        for model, stats in list(recorder.queues.items()):
            yield "hybrid_queue_waiting_rows", stats.waiting_rows, {"model": model}
            due_ms = stats.earliest_deadline_ms
            left_s = NOTHING_DUE_S if due_ms is None else (due_ms - stats.now_ms) / 1_000.0
            yield "hybrid_queue_earliest_deadline_seconds", left_s, {"model": model}

    def _count(
        self, metric: Any, counted: str, names: Sequence[str], key: Sequence[Any], total: int
    ) -> Iterator[None]:
        sent = self._sent[counted, *key]
        if total > sent:
            self._sent[counted, *key] = total
            yield metric.inc(total - sent, tags=_tags(names, key))

    async def run(self, every_s: float = 1.0, sleep: Callable[[float], Any] = asyncio.sleep) -> None:
        """Publish until cancelled."""
        while True:
            await sleep(every_s)
            await self.publish()


def _tags(names: Sequence[str], key: Sequence[Any]) -> dict[str, str]:
    return {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in zip(names, key, strict=True)
    }
