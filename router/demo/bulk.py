"""The bulk half of the demo's load: every test image many times over, in a process of its own.

It uses the SDK's `map`, as another team's job would.

``python -m router.demo.bulk URL MODEL ARTIFACTS``: sends until its standard input closes, then waits for
all that it sent. It prints a JSON line about four times a second and one summary at the end.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from optimizers.examples.digits import test_split
from optimizers.tensors import Array
from router import Client
from router.demo import reference
from router.sdk.codec import Result
from router.sdk.errors import HybridRouterError

BUDGET = "10min"
ROWS_PER_REQUEST = 360
REQUESTS_IN_FLIGHT = 3
_BLOCK = 1024


class BulkTally:
    """Counts of the rows that came back; rows are checked in blocks, because numpy is slow on single ones."""

    def __init__(self, known: reference.Reference) -> None:
        self._known = known
        self.rows = self.right = self.untrue = self.failed = self.late = 0
        self.variants: Counter[str] = Counter()
        self.latencies_ms: list[float] = []
        self.errors: Counter[str] = Counter()
        self._block: dict[str, list[tuple[int, Array, Array]]] = defaultdict(list)

    def add(self, result: Result | HybridRouterError, index: int) -> None:
        if isinstance(result, HybridRouterError):
            self.failed += 1
            self.errors[str(result)] += 1
            return
        self.rows += 1
        variant = result.variant or ""
        self.variants[variant] += 1
        self.late += result.deadline_met is False
        if self.rows % ROWS_PER_REQUEST == 0:
            self.latencies_ms.append(result.latency_ms)
        block = self._block[variant]
        block.append((index, result.outputs["label"], result.outputs["scores"]))
        if len(block) >= _BLOCK:
            self._check(variant)

    def _check(self, variant: str) -> None:
        """Compare a block with the truth and with what the variant itself answers."""
        block = self._block.pop(variant)
        index = np.array([entry[0] for entry in block])
        labels = np.array([entry[1].reshape(-1)[0] for entry in block])
        scores = np.stack([entry[2].reshape(-1) for entry in block])
        self.right += int((labels == self._known.truth[index]).sum())
        self.untrue += int((~self._known.matches(variant, index, labels, scores)).sum())

    def finish(self) -> None:
        for variant in list(self._block):
            self._check(variant)

    def to_json(self, sent: int, seconds: float) -> dict[str, Any]:
        times = self.latencies_ms or [0.0]
        return {
            "sent": sent,
            "rows": self.rows,
            "right": self.right,
            "untrue": self.untrue,
            "failed": self.failed,
            "late": self.late,
            "variants": dict(self.variants),
            "latency_ms_p50": float(np.percentile(times, 50)),
            "latency_ms_p99": float(np.percentile(times, 99)),
            "seconds": seconds,
            "errors": dict(self.errors.most_common(3)),
        }


def main(url: str, model: str, artifacts: str) -> None:
    # It stands for another machine: its own work must not take the server's cores.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    images, truth = test_split()
    variants = [path.parent.name for path in Path(artifacts).glob("*/manifest.json")]
    known = reference.compute(Path(artifacts), variants, images, truth)
    stop = threading.Event()
    threading.Thread(target=_until_closed, args=(stop,), daemon=True).start()
    sent, tally, start = 0, BulkTally(known), time.perf_counter()

    def items() -> Iterator[Array]:
        nonlocal sent
        while not stop.is_set():
            for image in images:
                sent += 1
                yield image

    _say({"ready": True})
    reported_s = 0.0
    with Client(url) as client:
        results = client.map(
            model,
            items(),
            BUDGET,
            rows_per_request=ROWS_PER_REQUEST,
            concurrency=REQUESTS_IN_FLIGHT,
            on_error="return",
        )
        for number, result in enumerate(results):
            tally.add(result, number % len(images))
            now = time.perf_counter() - start
            if now - reported_s >= 0.25:
                reported_s = now
                _say({"sent": sent, "rows": tally.rows, "untrue": tally.untrue, "failed": tally.failed})
    tally.finish()
    _say({"summary": tally.to_json(sent, time.perf_counter() - start)})


def _until_closed(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def _say(value: dict[str, Any]) -> None:
    sys.stdout.write(orjson.dumps(value).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
