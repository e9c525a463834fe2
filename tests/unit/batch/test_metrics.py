"""What a batch worker publishes, with a double in place of Serve's metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from workers.batch.metrics import WorkerMetrics
from workers.batch.settings import Meter


class Metric:
    def __init__(self, published: dict[str, list[float]], name: str) -> None:
        self._published, self._name = published, name

    def publish(self, value: float, tags: Mapping[str, str]) -> None:
        assert tags["model"] == "m"
        self._published[self._name].append(value)

    inc = observe = set = publish


class Metrics:
    """Takes the arguments of ``ray.serve.metrics`` and keeps what is published, by the metric's name."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.published: dict[str, list[float]] = defaultdict(list)

    def Counter(self, name: str, text: str, tags: Sequence[str]) -> Metric:
        self.names.append(name)
        return Metric(self.published, name)

    Gauge = Counter

    def Histogram(self, name: str, text: str, bounds: Sequence[float], tags: Sequence[str]) -> Metric:
        return self.Counter(name, text, tags)


def test_rows_and_batches_are_published_once() -> None:
    metrics, meter = Metrics(), Meter()
    worker = WorkerMetrics("m", metrics)
    meter.rows["v", "done"] = 3
    meter.batches.append(("v", 3, 12.5))
    worker.publish(meter, 0)
    worker.publish(meter, 0)
    meter.rows["v", "done"] += 2
    worker.publish(meter, 1)
    assert metrics.published == {
        "hybrid_batch_rows_total": [3, 2],
        "hybrid_batch_size": [3],
        "hybrid_batch_latency_ms": [12.5],
        "hybrid_queue_orphaned_jobs": [0, 0, 1],
    }


def test_a_queue_that_cannot_be_read_publishes_nothing() -> None:
    metrics = Metrics()
    WorkerMetrics("m", metrics).publish(Meter(), None)
    assert not metrics.published, "unknown is not zero"


def test_the_state_of_the_queue_is_left_to_the_routers() -> None:
    # Each worker published its own last reading, and went on with it when the queue was empty or away.
    metrics = Metrics()
    WorkerMetrics("m", metrics)
    assert [name for name in metrics.names if "queue" in name] == ["hybrid_queue_orphaned_jobs"]
