"""The recorder: plain counts by label, cheap enough for every request, and nothing of Ray."""

from __future__ import annotations

import subprocess
import sys

from router.metrics import BATCH_BOUNDS, LATENCY_BOUNDS_MS, Recorder
from workers.queue import QueueStats

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
    code = "import sys, router.metrics as m; m.Recorder(); sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
