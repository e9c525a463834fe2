"""Bad bodies, bombs and slow clients, and what they do to everybody else: ``make bench NAME=doors``.

``keys`` times wrong keys. ``bodies`` sends random and mutated bodies to a whole ingress in memory. ``slow``
and ``bomb`` need a server: the first opens a thousand clients, half of them slow in the head and half in
the body, beside steady interactive requests, in turn with and without; the second sends what decompresses
to more than is allowed.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import orjson

from router.bench.http_pool import HttpPool
from tests.benchmarks import door_keys, mlp
from tests.benchmarks.report import Figure, at_least, at_most, write
from tests.support.mutants import try_out

PARTS = ("keys", "bodies", "slow", "bomb")
INFER = "/v2/models/mlp/infer"
_POLICY = """
models:
  mlp:
    artifacts: {folder}
    online: {{variants: [float32], replicas: 1, max_batch: 64}}
routes:
  - {{name: any, to: online, on_miss: [degrade]}}
defaults: {{budget: 1s}}
"""
#: Steady requests of others: far from what the server can do, so that waiting is what slow clients cause.
_CALLERS, _CALL_EVERY_S = 8, 0.08


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--bodies", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round; slow bodies last 20")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, default=8321)
    parser.add_argument("--smoke", action="store_true", help="seconds only: does it run?")
    chosen = parser.parse_args()
    if chosen.smoke:
        chosen.bodies, chosen.clients, chosen.seconds, chosen.rounds = 2_000, 50, 2.0, 1
    rows: list[Figure] = []
    if "keys" in chosen.parts:
        rows += door_keys.figures(2_000 if chosen.smoke else 50_000)
    if "bodies" in chosen.parts:
        rows += bodies(chosen.bodies)
    if {"slow", "bomb"} & set(chosen.parts):
        with _server(chosen.port) as url:
            if "slow" in chosen.parts:
                rows += slow(url, chosen.clients, chosen.seconds, chosen.rounds)
            if "bomb" in chosen.parts:
                rows += bomb(url)
    write("doors-smoke" if chosen.smoke else "doors", rows)


def bodies(count: int) -> Sequence[Figure]:
    """None is answered with a 5xx or not at all, and none leaves memory behind."""
    first = count // 5  # caches, counters and free lists are warm then
    try_out(first, seed=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    found = try_out(count, seed=7)
    took_s = time.perf_counter() - began
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1_024
    detail = {
        "statuses": {str(status): n for status, n in found.statuses.items()},
        "harmful": [(s.number, status) for s, status in found.harmful],
    }
    return (
        at_most(f"{count:,} random and mutated bodies: 5xx or no answer", len(found.harmful), "", 0, detail),
        at_most("most memory of the process, growth meanwhile", grown_mb, "MB", 16),
        Figure("per body, ingress and model in memory", took_s / count * 1e6, "us"),
    )


@contextmanager
def _server(port: int) -> Iterator[str]:
    from router.serving import local

    folder = Path("build/bench/mlp").absolute()
    mlp.build(folder)
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        policy = Path(temporary) / "policy.yaml"
        policy.write_text(_POLICY.format(folder=folder))
        with local.running(policy, port=port) as running:
            yield running.url


def slow(url: str, clients: int, seconds: float, rounds: int) -> Sequence[Figure]:
    """The latency of others beside slow clients over that without, round by round."""
    asyncio.run(_steady(url, 2.0))
    ratios, alone_ms, beside_ms, failed = [], [], [], 0
    ended = 0
    for _ in range(rounds):
        alone, lost = asyncio.run(_steady(url, seconds))
        with _slow_clients(url, clients) as told:
            beside, more_lost = asyncio.run(_steady(url, seconds))
        ended += sum(told)
        failed += lost + more_lost
        alone_ms.append(_p99(alone))
        beside_ms.append(_p99(beside))
        ratios.append(beside_ms[-1] / alone_ms[-1])
        print(
            f"  p99 alone {alone_ms[-1]:.2f} ms, beside {clients} slow ones {beside_ms[-1]:.2f} ms",
            flush=True,
        )
    detail = {"ratios": ratios, "alone_ms": alone_ms, "beside_ms": beside_ms, "ended_meanwhile": ended}
    name = f"others' p99 beside {clients:,} slow clients over without, median of {rounds}"
    return (
        at_most(name, statistics.median(ratios), "times", 2.0, detail),
        at_most("requests of others that were not answered with 200", failed, "", 0),
    )


@contextmanager
def _slow_clients(url: str, count: int) -> Iterator[list[int]]:
    """The clients, all connected; afterwards how many heads and bodies the server had ended by itself."""
    command = [sys.executable, "-m", "tests.support.slow_clients", url, INFER, str(count)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    told: list[int] = []
    try:
        if process.stdout.readline().strip() != "open":
            raise RuntimeError("the slow clients could not connect; what they print says why")
        yield told
        process.stdin.write("end\n")
        process.stdin.flush()
        told += map(int, process.stdout.readline().split())
    finally:
        process.stdin.close()
        process.stdout.close()
        process.terminate()
        process.wait(30)


async def _steady(url: str, seconds: float) -> tuple[list[float], int]:
    """Latencies, ms, of callers that each send a row at fixed times; and how many were not answered 200."""
    pool = HttpPool(url)
    head, body = _request()
    latencies: list[float] = []
    lost = 0
    began = time.perf_counter()

    async def caller(number: int) -> None:
        nonlocal lost
        due = began + number * _CALL_EVERY_S / _CALLERS
        while due < began + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            reply = await pool.exchange("POST", pool.prefix + INFER, head, body)
            if reply.status == 200:
                latencies.append((reply.at_s - due) * 1e3)  # from when it was due: a late start counts
            else:
                lost += 1
            due += _CALL_EVERY_S

    try:
        await asyncio.gather(*(caller(number) for number in range(_CALLERS)))
    finally:
        await pool.close()
    return latencies, lost


def _request() -> tuple[bytes, bytes]:
    values = np.random.default_rng(7).random((1, 64), dtype="<f4")
    entry = {"name": "x", "datatype": "FP32", "shape": [1, 64], "parameters": {"binary_data_size": 256}}
    head = orjson.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}})
    return b"Inference-Header-Content-Length: %d\r\n" % len(head), head + values.tobytes()


def _p99(latencies_ms: list[float]) -> float:
    return float(np.percentile(latencies_ms, 99)) if latencies_ms else float("nan")


def bomb(url: str) -> Sequence[Figure]:
    """The first kilobytes of what decompresses to gigabytes, and others' answers meanwhile."""
    refused, slowest_ms = 0, 0.0
    sent = [(coding, _bomb(coding, kb)) for coding in ("gzip", "deflate") for kb in (32, 128, 1_024)]
    random.Random(7).shuffle(sent)
    for coding, body in sent:
        began = time.perf_counter()
        reply = httpx.post(url + INFER, content=body, headers={"content-encoding": coding})
        slowest_ms = max(slowest_ms, (time.perf_counter() - began) * 1e3)
        refused += reply.status_code == 413
    return (
        at_least(f"of {len(sent)} bombs, refused with 413", refused, "", len(sent)),
        Figure("the slowest of those answers", slowest_ms, "ms"),
    )


def _bomb(coding: str, kilobytes: int) -> bytes:
    """The beginning of gigabytes of zeros: deflate says some 1,030 bytes in one."""
    if coding == "gzip":
        return gzip.compress(bytes(1_030 * kilobytes << 10), 9)[: kilobytes << 10]
    return zlib.compress(bytes(1_030 * kilobytes << 10), 9)[: kilobytes << 10]


if __name__ == "__main__":
    main()
