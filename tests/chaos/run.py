"""Chaos: submitters and workers on the real server, while processes are killed, stopped, poisoned and hung,
and beside them an endpoint whose queue server is killed and stopped.

``python -m tests.chaos.run --seconds 180 --seed 1`` prints the seed and the verdict, and exits with 1 if
anything was lost, doubled, out of order, wrongly failed, refused for a dead queue, or slow to recover.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.chaos.check import Verdict, judge
from tests.chaos.endpoint import Endpoint
from tests.chaos.parts import HANG, HUNG, LEASE_MS, MODEL, SETTINGS, ChaosReplica, Log, make_job, read_log
from workers.queue.contract import Accepted, QueueUnavailable
from workers.queue.embedded import EmbeddedServer
from workers.queue.job import JobStatus
from workers.queue.redis.queue import RedisQueue
from workers.queue.settings import settings_from

RECOVERY_LIMIT_S = 10.0
SUBMITTERS = 4
PLAIN_WORKERS = 2  # beside the Serve replica, which is the third


class Run:
    """One run: its processes, its faults, and what they did."""

    def __init__(self, folder: Path, seed: int, seconds: float, with_serve: bool) -> None:
        self.folder = folder
        self.endpoint = Endpoint(folder, seed) if with_serve else None
        self.rng = random.Random(seed)
        self.seed, self.seconds, self.with_serve = seed, seconds, with_serve
        self.server = EmbeddedServer.start(folder / "queue", fsync="always")
        self.url = self.server.url_file
        self.workers: list[subprocess.Popen[bytes]] = []
        self.submitters: list[subprocess.Popen[bytes]] = []
        self.faults: Counter[str] = Counter()
        self.recoveries_s: list[tuple[str, float]] = []
        self.queue = RedisQueue.open(self.server.url, MODEL, settings_from(SETTINGS), patience_s=5.0)
        self.log = Log(folder / "submitter-probe.log")
        self.probes = self.hung = 0

    def spawn(self, module: str, *args: str) -> subprocess.Popen[bytes]:
        with (self.folder / "output.txt").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", f"tests.chaos.{module}", self.url, str(self.folder), *args],
                stdout=output,
                stderr=output,
            )

    async def play(self) -> None:
        """Start everybody, play faults until the time is up, then let the work run out."""
        if self.endpoint:
            await asyncio.to_thread(self.endpoint.start)
        until = time.monotonic() + self.seconds
        beside = asyncio.create_task(self.endpoint.play(self.seconds) if self.endpoint else asyncio.sleep(0))
        replacing = asyncio.create_task(self.replace_workers())
        self.workers = [self.spawn("worker") for _ in range(PLAIN_WORKERS if self.with_serve else 3)]
        self.submitters = [
            self.spawn("submitter", str(n), str(self.seed), str(self.seconds)) for n in range(SUBMITTERS)
        ]
        await self.recovered("start", lambda: asyncio.sleep(0), count=False)
        faults: list[Callable[[], Awaitable[None]]] = [
            self.kill_worker,
            self.stop_worker,
            self.hang_worker,
            self.kill_server,
        ]
        if self.with_serve:
            faults.append(self.kill_replica)
        while time.monotonic() < until - 12:
            await asyncio.sleep(self.rng.uniform(0.5, 3.0))
            await self.rng.choice(faults)()
        for process in self.submitters:
            await asyncio.to_thread(process.wait)
            assert process.returncode == 0, f"a submitter failed; see {self.folder / 'output.txt'}"
        await beside
        await self.finish(replacing)

    async def replace_workers(self) -> None:
        """What Serve does for its replicas: a plain worker that ended because its model hangs is replaced."""
        while True:
            await asyncio.sleep(0.2)
            for at, worker in enumerate(self.workers):
                if worker.poll() == HUNG:
                    self.faults["hung worker replaced"] += 1
                    self.workers[at] = self.spawn("worker")

    async def finish(self, replacing: asyncio.Task[None]) -> None:
        until = time.monotonic() + 120
        # Other processes' progress: there is no event of ours to wait on.
        while (await self.queue.stats()).jobs and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        replacing.cancel()
        await asyncio.gather(replacing, return_exceptions=True)
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)
        for worker in self.workers:
            await asyncio.to_thread(worker.wait)

    async def recovered(self, name: str, fault: Callable[[], Awaitable[None]], *, count: bool = True) -> None:
        """Make a fault; then the time until a job sent afterwards is accepted and answered."""
        started = time.monotonic()
        await fault()
        self.probes += 1
        job = make_job(f"probe-{self.probes}", self.probes % 1000, 60_000)
        while True:
            with contextlib.suppress(QueueUnavailable):
                (answer,) = await self.queue.submit([job])
                if isinstance(answer, Accepted):
                    break
        self.log.write(id=job.id, deadline_ms=answer.deadline_ms, kind="", value=self.probes % 1000)
        while True:
            with contextlib.suppress(QueueUnavailable):
                if await self.queue.wait([job.id], 30):
                    break
        if count:
            self.faults[name] += 1
            self.recoveries_s.append((name, time.monotonic() - started))

    async def returned(self, name: str, worker: str) -> None:
        """The time until nothing is leased any more to a worker that is gone."""
        started = time.monotonic()
        base = f"hr:{{{MODEL}}}"
        client: Any = self.queue._client
        ids = [i.decode() for i in await client.zrange(f"{base}:leased", 0, -1)]
        while ids:
            records = [await client.hmget(f"{base}:job:{i}", ["st", "wk"]) for i in ids]
            theirs = [st == b"l" and (wk or b"").decode().endswith(worker) for st, wk in records]
            ids = [i for i, mine in zip(ids, theirs, strict=True) if mine]
            await asyncio.sleep(0.05)
        self.recoveries_s.append((name, time.monotonic() - started))

    async def kill_worker(self) -> None:
        at = self.rng.randrange(len(self.workers))
        victim = self.workers[at]

        async def kill() -> None:
            victim.kill()
            await asyncio.to_thread(victim.wait)
            await self.returned("worker killed: its leases", f"pid:{victim.pid}")
            self.workers[at] = self.spawn("worker")

        await self.recovered("worker killed", kill)

    async def kill_replica(self) -> None:
        pid = int((self.folder / "replica.pid").read_text())

        async def kill() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            started = time.monotonic()
            while int((self.folder / "replica.pid").read_text()) == pid:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            self.recoveries_s.append(("Serve replica killed: a new one", time.monotonic() - started))

        await self.recovered("Serve replica killed", kill)

    async def stop_worker(self) -> None:
        """Paused past its lease: it wakes up with results for jobs that others have by now."""
        victim = self.rng.choice(self.workers)

        async def stop() -> None:
            victim.send_signal(signal.SIGSTOP)
            await asyncio.sleep(LEASE_MS / 1000 * self.rng.uniform(1.1, 1.8))
            victim.send_signal(signal.SIGCONT)

        started = time.monotonic()
        await self.recovered("worker stopped past its lease", stop, count=False)
        self.faults["worker stopped past its lease"] += 1
        assert time.monotonic() > started

    async def hang_worker(self) -> None:
        """A job whose model never returns takes its workers along until it is given up on. One at a time."""
        last = await self.queue.state(f"hang-{self.hung}")
        if last and not last.state.terminal:
            return
        self.hung += 1
        value = self.hung % 1000
        job = make_job(f"hang-{self.hung}", HANG, 600_000)

        async def hang() -> None:
            while True:
                with contextlib.suppress(QueueUnavailable):
                    (answer,) = await self.queue.submit([job])
                    if isinstance(answer, Accepted):
                        break
            self.log.write(id=job.id, deadline_ms=answer.deadline_ms, kind=HANG, value=value)

        await self.recovered("a job that hangs its workers", hang)

    async def kill_server(self) -> None:
        loaded = self.rng.random() < 0.5

        async def kill() -> None:
            with disk_load(self.folder) if loaded else contextlib.nullcontext():
                await asyncio.sleep(0.3)
                os.kill(self.server.pid, signal.SIGKILL)
                await asyncio.to_thread(self.server.stop)
                await asyncio.sleep(1.0)
                self.server = await asyncio.to_thread(
                    EmbeddedServer.start, self.folder / "queue", fsync="always"
                )

        await self.recovered("server killed, disk loaded" if loaded else "server killed", kill)

    async def verdict(self) -> Verdict:
        accepted = [e for path in self.folder.glob("submitter-*.log") for e in read_log(path)]
        events = [e for path in self.folder.glob("worker-*.log") for e in read_log(path)]
        statuses: dict[str, JobStatus | None] = {}
        for at in range(0, len(accepted), 16):
            ids = [a["id"] for a in accepted[at : at + 16]]
            found = await asyncio.gather(*(self.queue.state(i) for i in ids))
            statuses.update(zip(ids, found, strict=True))
        return judge(accepted, statuses, events, (await self.queue.stats()).totals["done"])

    async def close(self) -> None:
        for process in (*self.workers, *self.submitters):
            if process.poll() is None:
                process.kill()
                process.wait()
        if self.endpoint:
            await self.endpoint.close()
        await self.queue.close()
        self.server.stop()


@contextlib.contextmanager
def disk_load(folder: Path) -> Iterator[None]:
    """Another process that writes and flushes to the same disk as fast as it can."""
    code = (
        "import os,sys\n"
        "while True:\n"
        " with open(sys.argv[1],'wb') as f:\n"
        "  for _ in range(16): f.write(os.urandom(1<<20)); f.flush(); os.fsync(f.fileno())\n"
    )
    path = folder / "load"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    try:
        yield
    finally:
        process.kill()
        process.wait()
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def serve_replica(url: str, folder: Path) -> Iterator[None]:
    """Ray Serve with one batch worker, in this process's own local cluster."""
    import ray
    from ray import serve

    from workers.batch.deployment import deployment

    root = str(Path(__file__).parents[2])
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=2,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )
    try:
        serve.start(proxy_location="Disabled")
        bound = deployment(
            MODEL, str(folder), "v", url, kind=ChaosReplica, lease_ms=LEASE_MS, queue_settings=SETTINGS
        )
        serve.run(bound, name="chaos", route_prefix=None)
        yield
        serve.shutdown()  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()


def report(run: Run, verdict: Verdict) -> bool:
    """Print what happened; whether all of it is as it must be."""
    counts: Counter[str] = Counter()
    faults, recoveries_s, problems = run.faults, run.recoveries_s, dict[str, int]()
    if run.endpoint:
        counts, problems = run.endpoint.counts, run.endpoint.problems()
        faults, recoveries_s = faults + run.endpoint.faults, recoveries_s + run.endpoint.recoveries_s
    longest = max(recoveries_s, key=lambda r: r[1], default=("none", 0.0))
    print(f"seed {run.seed}, {run.seconds:.0f} s, {SUBMITTERS} submitters, 3 workers")
    for name, count in sorted(faults.items()):
        print(f"  {count:3} x {name}")
    for name, value in asdict(verdict).items():
        print(f"{name.replace('_', ' '):20} {value}")
    for name, value in sorted({**counts, **problems}.items()):
        print(f"endpoint: {name:28} {value}")
    if run.endpoint:
        for words, count in run.endpoint.words.most_common(10):
            print(f"endpoint: {count} x {words}")
    print(f"{'longest recovery':20} {longest[1]:.1f} s ({longest[0]})")
    return verdict.good and not any(problems.values()) and longest[1] <= RECOVERY_LIMIT_S


async def play(folder: Path, seed: int, seconds: float, with_serve: bool) -> bool:
    run = Run(folder, seed, seconds, with_serve)
    try:
        with serve_replica(run.url, folder) if with_serve else contextlib.nullcontext():
            await run.play()
        return report(run, await run.verdict())
    finally:
        await run.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--seed", type=int, default=None, help="default: drawn at random, and printed")
    parser.add_argument("--without-serve", action="store_true", help="a plain worker for the Serve replica")
    args = parser.parse_args()
    seed = secrets.randbelow(1 << 31) if args.seed is None else args.seed
    print(f"chaos with seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        good = asyncio.run(play(Path(name), seed, args.seconds, not args.without_serve))
    print("good" if good else "NOT good")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
