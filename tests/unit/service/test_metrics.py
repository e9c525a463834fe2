"""The recorder: plain counts by label, cheap enough for every request, and nothing of Ray."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from typing import Any

from router.service.metrics import BATCH_BOUNDS, LATENCY_BOUNDS_MS, Publisher, Recorder
from workers.queue.contract import QueueStats

STATS = QueueStats(
    now_ms=1,
    jobs=2,
    rows=3,
    bytes=4,
    waiting_jobs=2,
    waiting_rows=3,
    delayed_jobs=0,
    leased_jobs=0,
    dead_letters=0,
    earliest_deadline_ms=None,
    rows_per_s=None,
    totals={},
)


def test_requests_and_deadlines_are_counted_by_their_labels() -> None:
    recorder = Recorder()
    for outcome in ("done", "done", "expired"):
        recorder.request("m", "fast", "online", "v", outcome)
        recorder.deadline("m", "fast", outcome == "done")
    recorder.request("m", "bulk", "batch", "", "accepted")
    assert dict(recorder.requests) == {
        ("m", "fast", "online", "v", "done"): 2,
        ("m", "fast", "online", "v", "expired"): 1,
        ("m", "bulk", "batch", "", "accepted"): 1,
    }
    assert dict(recorder.deadlines) == {("m", "fast", True): 2, ("m", "fast", False): 1}


def test_samples_are_kept_in_order_by_their_labels() -> None:
    recorder = Recorder()
    for ms in (3.0, 1.0, 2.0):
        recorder.latency("m", "fast", "online", ms)
    recorder.batch("m", "v", 8)
    recorder.batch("m", "w", 2)
    assert dict(recorder.latencies) == {("m", "fast", "online"): [3.0, 1.0, 2.0]}
    assert dict(recorder.batches) == {("m", "v"): [8], ("m", "w"): [2]}


def test_the_newest_statistics_of_each_queue_are_kept() -> None:
    recorder = Recorder()
    recorder.queue("m", STATS)
    recorder.queue("n", STATS)
    recorder.queue("m", STATS)
    assert recorder.queues == {"m": STATS, "n": STATS}


def test_two_recorders_share_nothing() -> None:
    one, other = Recorder(), Recorder()
    one.request("m", "fast", "online", "v", "done")
    one.batch("m", "v", 1)
    assert not other.requests and not other.batches


def test_the_bounds_of_the_histograms_ascend() -> None:
    for bounds in (LATENCY_BOUNDS_MS, BATCH_BOUNDS):
        assert bounds == sorted(set(bounds))


def test_the_recorder_needs_no_ray() -> None:
    code = "import sys, router.service.metrics as m; m.Recorder(); sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Metrics:
    """Stands for ``ray.serve.metrics``: keeps all calls, and counts those of one turn of the loop."""

    def __init__(self) -> None:
        self.sums: Counter[tuple[Any, ...]] = Counter()
        self.samples: Counter[tuple[Any, ...]] = Counter()
        self.levels: dict[tuple[Any, ...], float] = {}
        self.this_turn = self.most_in_a_turn = 0

    def called(self) -> None:
        self.this_turn += 1
        self.most_in_a_turn = max(self.most_in_a_turn, self.this_turn)

    def Counter(self, name: str, *, description: str, tag_keys: Any = ()) -> Metric:
        return Metric(self, name)

    Gauge = Counter

    def Histogram(self, name: str, *, description: str, boundaries: Any, tag_keys: Any) -> Metric:
        return Metric(self, name)


class Metric:
    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics, self._name = metrics, name

    def _key(self, tags: dict[str, str]) -> tuple[Any, ...]:
        self._metrics.called()
        return (self._name, *tags.values())

    def inc(self, value: int, tags: dict[str, str]) -> None:
        self._metrics.sums[self._key(tags)] += value

    def set(self, value: float, tags: dict[str, str]) -> None:
        self._metrics.levels[self._key(tags)] = value

    def observe(self, value: float, tags: dict[str, str]) -> None:
        self._metrics.samples[self._key(tags)] += 1


async def test_publishing_makes_way_for_requests_and_thins_what_is_too_much() -> None:
    recorder, metrics = Recorder(), Metrics()
    publisher = Publisher(recorder, metrics)
    for _ in range(399):
        recorder.latency("m", "fast", "online", 1.0)
    for number in range(40):
        recorder.request("m", f"route-{number}", "online", "v", "done")
    publishing = asyncio.create_task(publisher.publish())
    turns = 0
    while not publishing.done():
        metrics.this_turn, turns = 0, turns + 1
        await asyncio.sleep(0)
    assert metrics.most_in_a_turn <= 16 and turns > 10
    assert metrics.samples["hybrid_latency_ms", "m", "fast", "online"] == 200
    assert sum(metrics.sums.values()) == 40


async def test_what_is_counted_while_others_are_published_is_sent_next_time() -> None:
    recorder, metrics = Recorder(), Metrics()
    publisher = Publisher(recorder, metrics)
    for number in range(40):
        recorder.request("m", f"route-{number}", "online", "v", "done", "acme")
    publishing = asyncio.create_task(publisher.publish())
    while not publishing.done():
        recorder.request("m", "route-0", "online", "v", "done", "acme")
        await asyncio.sleep(0)
    await publisher.publish()
    assert metrics.sums["hybrid_tenant_requests_total", "acme", "done"] == recorder.tenants["acme", "done"]
    assert (
        metrics.sums["hybrid_requests_total", "m", "route-0", "online", "v", "done"]
        == (recorder.requests["m", "route-0", "online", "v", "done"])
    )


async def test_an_unknown_queue_and_each_state_of_the_policy_have_a_value_of_their_own() -> None:
    recorder, metrics = Recorder(), Metrics()
    publisher = Publisher(recorder, metrics)
    recorder.queue("m", STATS)
    recorder.queue("n", None)
    seen = []
    for state in ("applied", "needs redeploy", "refused"):
        recorder.policy("abc", state)  # type: ignore[arg-type]
        await publisher.publish()
        seen.append(
            (metrics.levels["hybrid_policy_refused",], metrics.levels["hybrid_policy_needs_redeploy",])
        )
    assert seen == [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0)]
    assert metrics.levels["hybrid_queue_known", "m"] == 1.0
    assert metrics.levels["hybrid_queue_known", "n"] == 0.0
    assert ("hybrid_queue_waiting_rows", "n") not in metrics.levels, "unknown is not zero"
