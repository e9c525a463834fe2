"""Load on one model of a running server: in a closed loop, at its capacity, or by a list of times."""

from __future__ import annotations

import asyncio
import csv
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from optimizers.profile import LatencyProfile
from router import Client
from router.bench import bodies
from router.bench.bodies import Bodies
from router.bench.http_pool import HttpPool
from router.bench.run import Replayed, replay
from router.cli.client.bench import quality_drops
from router.sdk.codec import ModelInfo
from router.simulate import workload
from router.simulate.arrivals import read_arrivals
from router.simulate.workload import Request, Share

#: Long enough that a closed loop's requests are never refused.
_NO_HURRY_MS = 60_000.0


@dataclass(frozen=True, slots=True)
class Target:
    """One model of the server at ``url``, and the file whose rows are sent."""

    url: str
    model: str
    data: Path

    def requests(self, times_s: Sequence[float], budget_ms: float, seed: int = 7) -> list[Request]:
        return workload.generated(times_s, (Share(self.model, budget_ms),), seed)

    def info(self) -> ModelInfo:
        with Client(self.url) as client:
            return client.model(self.model)

    def stats(self) -> dict[str, Any]:
        """The server's account of this model, as ``status --json`` tells it."""
        with Client(self.url) as client:
            return client.stats(self.model)

    def online(self) -> dict[str, Any]:
        """Its online side: load, profiles, how many predictions held of how many."""
        told: dict[str, Any] = self.stats()["online"]
        return told

    def profile(self, variant: str) -> LatencyProfile:
        """As the server has corrected it."""
        return LatencyProfile.from_json(self.online()["profiles"][variant])

    def save_status(self, path: Path) -> Path:
        """What `hybrid-router simulate --observed` reads."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(orjson.dumps({"models": [{"name": self.model, "stats": self.stats()}]}))
        return path

    def play(
        self,
        requests: Sequence[Request],
        *,
        variant: str | None = None,
        prefix: str = "",
    ) -> Replayed:
        """Open loop; ``prefix`` is the path of another application that serves the same model."""
        return asyncio.run(self._play(requests, variant, prefix))

    async def _play(self, requests: Sequence[Request], variant: str | None, prefix: str) -> Replayed:
        ready = self._bodies(requests)
        about = HttpPool(self.url)
        drops = await quality_drops(about, {self.model})
        await about.close()
        pool = HttpPool(self.url + prefix)
        try:
            return await replay(pool, requests, ready, variant=variant, drops=drops)
        finally:
            await pool.close()

    def _bodies(self, requests: Sequence[Request]) -> Bodies:
        return bodies.prepare(requests, {self.model: self.info()}, self.data, seed=7)

    def closed_loop(
        self, callers: int, seconds: float, *, variant: str | None = None, prefix: str = ""
    ) -> list[float]:
        """Latencies, ms, of callers that each send the next row as soon as the last is answered.

        Raises RuntimeError for any answer but 200: a capacity made of errors is none.
        """
        return asyncio.run(self._closed_loop(callers, seconds, variant, prefix))

    async def _closed_loop(
        self, callers: int, seconds: float, variant: str | None, prefix: str
    ) -> list[float]:
        request = Request(0.0, self.model, _NO_HURRY_MS, 1)
        ready = self._bodies([request])
        pool = HttpPool(self.url + prefix)
        pin = f"/versions/{variant}" if variant else ""
        path = f"{pool.prefix}/v2/models/{self.model}{pin}/infer"
        latencies: list[float] = []
        end = time.perf_counter() + seconds

        async def caller(number: int) -> None:
            while time.perf_counter() < end:
                body = ready.of(request, number)
                number += callers
                head = b"Latency-Budget-Ms: %d\r\n" % _NO_HURRY_MS + body.head
                start = time.perf_counter()
                reply = await pool.exchange("POST", path, head, body.content)
                if reply.status != 200:
                    raise RuntimeError(f"{path}: status {reply.status}: {reply.body[:200]!r}")
                latencies.append((reply.at_s - start) * 1e3)

        try:
            await asyncio.gather(*(caller(number) for number in range(callers)))
        finally:
            await pool.close()
        return latencies

    def capacity_per_s(self, max_batch: int, seconds: float, variant: str | None = None) -> float:
        """Rows a second with every batch full: two in flight, and as many again that wait."""
        callers = 4 * max_batch
        self.closed_loop(callers, min(2.0, seconds), variant=variant)  # warm
        return len(self.closed_loop(callers, seconds, variant=variant)) / seconds


def best_batch(profile: LatencyProfile) -> int:
    """The measured batch with the most rows a second: a larger one only makes every answer later."""
    return max(profile.points, key=lambda point: point.batch / point.median_ms).batch


def sentences(folder: Path, out: Path) -> Path:
    """The questions of BANKING77's test part as JSON lines, a row each."""
    source = folder / "banking77_test.csv"
    with source.open(newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(b"".join(orjson.dumps(text) + b"\n" for text in texts))
    return out


def arrivals(folder: Path, name: str) -> list[float]:
    return read_arrivals(folder / name)


def seen(replayed: Replayed) -> Mapping[str, Any]:
    """A replay for the file: the result's numbers, and whether the sender kept up."""
    return {
        **replayed.result.to_json(),
        "sender_lateness_ms_p99": replayed.lateness_ms_p99,
        "sender_was_bottleneck": replayed.sender_was_bottleneck,
        "failures": dict(list(replayed.failures.items())[:5]),
    }
