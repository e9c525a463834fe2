"""Drain: the batch path against the bare model, against Celery and RQ, with a million waiting, and idle.

``make bench NAME=drain``; ``--smoke`` runs every part in miniature, to see that it works.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimizers.profile import quantile
from optimizers.tensors import pack
from tests.benchmarks.drain_parts import WIDTH
from tests.benchmarks.report import Figure, at_least, at_most, write
from workers.queue.contract import Done, Release
from workers.queue.embedded import EmbeddedServer
from workers.queue.job import LeaseRef, NewJob
from workers.queue.redis.queue import RedisQueue
from workers.queue.settings import QueueSettings

SETTINGS = QueueSettings(max_jobs=2_000_000, keep_ms=600_000)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def jobs(count: int, rows: int, prefix: str) -> list[NewJob]:
    rng = np.random.default_rng(0)
    return [
        NewJob(
            f"{prefix}{i:020d}", pack({"x": rng.standard_normal((rows, WIDTH), np.float32)}), rows, 3_600_000
        )
        for i in range(count)
    ]


@contextlib.contextmanager
def process(
    *command: str, ends: int = signal.SIGTERM, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(command, env={**os.environ, **ONE_THREAD, **environment})
    try:
        yield started
    finally:
        started.send_signal(ends)
        try:
            started.wait(15)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def ours(part: str, *args: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "tests.benchmarks.drain_parts", part, *args)


async def until_done(queue: RedisQueue, count: int) -> None:
    # The worker is another process: its progress is read, not announced.
    while (await queue.stats()).totals["done"] < count:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def warmed(queue: RedisQueue) -> None:
    """The worker is up and has run a job."""
    await queue.submit(jobs(1, 1, "warm"))
    await until_done(queue, 1)


def answer(*args: str) -> float:
    """The number that a part prints, in a process of its own."""
    environment = {**os.environ, **ONE_THREAD}
    return float(subprocess.run(ours(*args), env=environment, stdout=subprocess.PIPE, check=True).stdout)


async def drain_one_ms(folder: Path, rows: int) -> Figure:
    # Calibrated once, so that loop and worker run the very same model.
    depth = str(round(await asyncio.to_thread(answer, "calibrate")))
    loop_s = await asyncio.to_thread(answer, "loop", depth, str(rows))
    with EmbeddedServer.start(folder / "one_ms") as server:
        queue = RedisQueue.open(server.url, "bench", SETTINGS)
        await queue.submit(jobs(rows, 1, "j"))
        started = time.perf_counter()
        with process(*ours("worker", depth, server.url)):
            # Its start (loading, measuring its profile) is not draining: from its first result on.
            await until_done(queue, 1)
            first, started = (await queue.stats()).totals["done"], time.perf_counter()
            await until_done(queue, rows)
            drain_s = (time.perf_counter() - started) * rows / (rows - first)
        await queue.close()
    detail = {"rows": rows, "loop_s": loop_s, "drain_s": drain_s, "rows_per_job": 1}
    return at_least("drain of a 1 ms model over its bare loop", loop_s / drain_s, "", 0.95, detail)


async def drain_free(folder: Path, rows: int, rows_per_job: int) -> tuple[float, dict[str, Any]]:
    """Rows per second from the first submit to the last settlement."""
    with EmbeddedServer.start(folder / f"free{rows_per_job}") as server:
        queue = RedisQueue.open(server.url, "bench", SETTINGS)
        work = jobs(rows // rows_per_job, rows_per_job, "j")
        with process(*ours("worker", "0", server.url)):
            await warmed(queue)
            started = time.perf_counter()
            await queue.submit(work)
            submit_s = time.perf_counter() - started
            await until_done(queue, len(work) + 1)
            total_s = time.perf_counter() - started
        await queue.close()
    return rows / total_s, {
        "rows": rows,
        "rows_per_job": rows_per_job,
        "submit_s": submit_s,
        "total_s": total_s,
    }


async def mlp_ours(folder: Path, rows: int) -> float:
    """Rows per second of the MLP, one job per row, until every result has been read."""
    with EmbeddedServer.start(folder / "mlp") as server:
        queue = RedisQueue.open(server.url, "bench", SETTINGS)
        with process(*ours("mlp", "0", server.url)):
            await warmed(queue)
            work = jobs(rows, 1, "j")
            started = time.perf_counter()
            await queue.submit(work)
            left = [job.id for job in work]
            while left:
                ended = {s.id for s in await queue.wait(left[:256], 60)}
                left = [id for id in left if id not in ended]
            rate = rows / (time.perf_counter() - started)
        await queue.close()
    return rate


def mlp_celery(folder: Path, rows: int) -> float:
    from tests.benchmarks.drain_peers import celery_app

    with EmbeddedServer.start(folder / "celery") as server:
        app = celery_app(server.url)
        command = (sys.executable, "-m", "celery", "-A", "tests.benchmarks.drain_peers", "worker")
        options = ("--concurrency", "1", "--loglevel", "ERROR")
        with process(*command, *options, BENCH_QUEUE_URL=server.url):
            x = np.random.default_rng(0).standard_normal((rows, WIDTH), np.float32).tolist()
            app.send_task("infer", args=[x[0]]).get(timeout=60)
            started = time.perf_counter()
            pending = [app.send_task("infer", args=[row]) for row in x]
            for result in pending:
                result.get(timeout=120)
            rate = rows / (time.perf_counter() - started)
            # While the server is there: a result that goes away says so to it.
            del pending, result
            gc.collect()
        app.close()
    return rate


def mlp_rq(folder: Path, rows: int) -> float:
    from redis import Redis
    from rq import Queue

    from tests.benchmarks.drain_peers import infer

    with EmbeddedServer.start(folder / "rq") as server:
        connection = Redis.from_url(server.url)
        queue = Queue("bench", connection=connection)
        with process(sys.executable, "-m", "tests.benchmarks.drain_peers", "rq", server.url):
            x = np.random.default_rng(0).standard_normal((rows, WIDTH), np.float32).tolist()
            _finished([queue.enqueue(infer, x[0])])
            started = time.perf_counter()
            pending = [queue.enqueue(infer, row) for row in x]
            _finished(pending)
            rate = rows / (time.perf_counter() - started)
        connection.close()
    return rate


def _finished(pending: Sequence[Any]) -> None:
    for job in pending:
        while job.return_value(refresh=True) is None:
            time.sleep(0.002)


async def waiting(
    folder: Path, sizes: Sequence[int], samples: int
) -> tuple[dict[int, dict[str, float]], float, dict[str, float]]:
    """p99 of a submit and of a claim of 64 (ms) with so many waiting; bytes per job beyond its payload;
    and what is left once all of them have been through."""
    payload = os.urandom(256)
    rng = random.Random(0)
    found: dict[int, dict[str, float]] = {}
    with EmbeddedServer.start(folder / "waiting", fsync="everysec") as server:
        queue = RedisQueue.open(server.url, "bench", SETTINGS)
        used_before = (await queue._client.info("memory"))["used_memory"]
        present = 0
        for size in sizes:
            while present < size:
                count = min(2560, size - present)
                await queue.submit(
                    [
                        NewJob(f"{present + i:026d}", payload, 1, rng.randint(1_800_000, 7_200_000))
                        for i in range(count)
                    ]
                )
                present += count
            per_job = ((await queue._client.info("memory"))["used_memory"] - used_before) / present - len(
                payload
            )
            found[size] = await _latencies(queue, payload, size, samples)
            present += samples
        await queue.close()
        left = await _run_through(server.url, used_before)
    return found, per_job, left


async def _run_through(url: str, used_before: int) -> dict[str, float]:
    """Everything that waits is done, its time to be kept runs out; then the keys and bytes left."""
    queue = RedisQueue.open(url, "bench", QueueSettings(max_jobs=2_000_000, keep_ms=1))
    client: Any = queue._client
    while leases := await queue.claim(512, 1000, "bench"):
        await queue.settle([Done(x.id, x.token, b"result") for x in leases])
    jobs_done = (await queue.stats()).totals["done"]
    until = time.monotonic() + 120
    # What nobody touches, the server removes by and by, some of it at a time.
    while await client.dbsize() > 1 and time.monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(0.5)
    left = {
        "jobs_done": float(jobs_done),
        "keys_left": float(await client.dbsize()),
        "bytes_left": float((await client.info("memory"))["used_memory"] - used_before),
    }
    await queue.close()
    return left


async def _latencies(queue: RedisQueue, payload: bytes, size: int, samples: int) -> dict[str, float]:
    submits, claims = [], []
    for i in range(samples):
        job = NewJob(f"s{size:012d}{i:013d}", payload, 1, 3_600_000)
        started = time.perf_counter()
        await queue.submit([job])
        submits.append((time.perf_counter() - started) * 1e3)
    for _ in range(samples):
        started = time.perf_counter()
        leases = await queue.claim(64, 60_000, "bench")
        claims.append((time.perf_counter() - started) * 1e3)
        await queue.settle([Release(*LeaseRef(x.id, x.token)) for x in leases])
    return {"submit_p99_ms": quantile(submits, 0.99), "claim_p99_ms": quantile(claims, 0.99)}


def cpu_s(pid: int) -> float:
    """Processor time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle(folder: Path, seconds: float) -> tuple[float, float, dict[str, float]]:
    """Percent of a core: an idle batch worker beyond an empty Serve replica, and the idle server."""
    from tests.benchmarks.drain_idle import two_replicas

    with EmbeddedServer.start(folder / "idle") as server, two_replicas(server.url_file, folder) as pids:
        time.sleep(5)  # let both settle
        before = {name: cpu_s(pid) for name, pid in (*pids.items(), ("server", server.pid))}
        started = time.perf_counter()
        time.sleep(seconds)
        elapsed_s = time.perf_counter() - started
        used = {
            name: (cpu_s(pid) - before[name]) / elapsed_s * 100
            for name, pid in (*pids.items(), ("server", server.pid))
        }
    return used["worker"] - used["empty"], used["server"], used


def measure(folder: Path, smoke: bool) -> list[Figure]:
    from tests.benchmarks import mlp

    figures = [asyncio.run(drain_one_ms(folder, 1000 if smoke else 20_000))]
    for rows_per_job in (1, 64):
        rate, detail = asyncio.run(drain_free(folder, 2000 if smoke else 50_000, rows_per_job))
        name = f"drain of a model that costs nothing, {rows_per_job} rows a job"
        figures.append(at_least(name, rate, "rows/s", 10_000, detail))
    mlp.build(Path("build/bench/mlp"))
    mine = asyncio.run(mlp_ours(folder, 500 if smoke else 20_000))
    for name, peer in (("Celery", mlp_celery), ("RQ", mlp_rq)):
        rate = peer(folder, 100 if smoke else 3000)
        detail = {"ours_rows_per_s": mine, "theirs_rows_per_s": rate}
        figures.append(at_least(f"the MLP, one task a row, over {name}", mine / rate, "times", 10, detail))
    sizes = (1000, 20_000) if smoke else (1000, 1_000_000)
    found, per_job, left = asyncio.run(waiting(folder, sizes, 100 if smoke else 2000))
    by_size = {str(size): latencies for size, latencies in found.items()}
    for verb in ("submit", "claim"):
        ratio = found[sizes[1]][f"{verb}_p99_ms"] / found[sizes[0]][f"{verb}_p99_ms"]
        name = f"{verb} p99 with {sizes[1]:,} waiting over {sizes[0]:,}"
        figures.append(at_most(name, ratio, "times", 3, by_size))
    figures.append(at_most("memory per waiting job beyond its payload", per_job, "bytes", 500))
    name = f"keys left after {left['jobs_done']:,.0f} jobs, of the queue's own"
    figures.append(at_most(name, left["keys_left"], "keys", 1, left))
    worker, server, used = idle(folder, 5 if smoke else 60)
    figures.append(at_most("CPU of an idle worker beyond an empty replica", worker, "% of a core", 1, used))
    figures.append(at_most("CPU of the idle server", server, "% of a core", 1))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true")
    smoke: bool = parser.parse_args().smoke
    with tempfile.TemporaryDirectory(prefix="drain-") as name:
        figures = measure(Path(name), smoke)
    write("drain-smoke" if smoke else "drain", figures)


if __name__ == "__main__":
    main()
