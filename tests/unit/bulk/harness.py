"""A server that keeps jobs by idempotency key, and a disk that stops at any operation, for the bulk tests."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from optimizers.tensors import Array, Tensors, TensorSpec
from router.bulk.disk import AppendFile, Disk
from router.bulk.plan import Order
from router.bulk.run import BulkProgress, run
from router.ingress.codec import protocol
from router.sdk.async_client import AsyncClient
from router.sdk.codec import ModelInfo
from tests.unit.sdk.harness import Clock, pending, problem

ROWS = TensorSpec("x", "FP32", (-1, 2))
OUTPUTS = (TensorSpec("double", "FP32", (-1, 2)), TensorSpec("label", "INT64", (-1,)))
INFO = ModelInfo("m", ("a", "b"), "test", (ROWS,), OUTPUTS)
POISON = 1_000.0


class Crash(BaseException):
    """Stands for kill -9: nothing that runs afterwards reaches the disk or the server."""


def table(rows: int, poison: tuple[int, ...] = ()) -> Array:
    """Row i is (i, i + 0.5); a poisoned one (i, 1000), on which the model fails."""
    values = np.arange(rows, dtype=np.float32)[:, None] + np.array([0, 0.5], dtype=np.float32)
    values[list(poison), 1] = POISON
    return values


def answer(x: Array) -> Tensors:
    return {"double": x * 2, "label": x[:, 0].astype(np.int64) % 10}


class BulkServer:
    """Serves ``m`` by the queue. ``taken`` counts how often each row became part of a new job.

    ``fate`` may name what becomes of a job instead, by its number. ``crash_at`` raises Crash after
    that many requests were handled: the server did its work, the client never heard of it.
    """

    def __init__(self, fate: Callable[[int], httpx.Response | None] = lambda number: None) -> None:
        self.fate = fate
        self.taken: Counter[int] = Counter()
        self.requests = 0
        self.posted: list[httpx.Request] = []
        self.crash_at = -1
        self.dead = False
        self.online = False
        self._jobs: dict[str, tuple[bytes, httpx.Response]] = {}
        self._keys: dict[str, str] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.dead:
            raise Crash
        reply = self._handle(request)
        self.requests += 1
        if self.requests == self.crash_at:
            self.dead = True
            raise Crash
        return reply

    def _handle(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path.startswith("/v2/requests/"):
            job = self._jobs.get(path.rpartition("/")[2])
            return job[1] if job else problem(404, "no such request")
        if path.endswith("/m"):
            versions = {"name": "m", "versions": list(INFO.versions)}
            specs = {"inputs": [ROWS.to_json()], "outputs": [s.to_json() for s in OUTPUTS]}
            return httpx.Response(200, json=versions | specs)
        return self._infer(request)

    def _infer(self, request: httpx.Request) -> httpx.Response:
        self.posted.append(request)
        key = request.headers["idempotency-key"]
        if key in self._keys:
            id_ = self._keys[key]
            same = self._jobs[id_][0] == request.content
            return pending(id_) if same else problem(409, "the key was used for other content")
        decoded = protocol.decode(request.content, int(request.headers[protocol.HEADER_LENGTH]))
        x = decoded.inputs["x"]
        self.taken.update(int(row) for row in x[:, 0])
        number = len(self._jobs)
        reply = self.fate(number) or self._run(x, decoded)
        id_ = f"m.{number}"
        self._jobs[id_], self._keys[key] = (request.content, reply), id_
        return reply if self.online else pending(id_)

    def _run(self, x: Array, decoded: protocol.DecodedBody) -> httpx.Response:
        if (x[:, 1] == POISON).any():
            return problem(422, "the model choked", state="failed")
        # Of a request that was queued, the real server gives all outputs too.
        wanted = decoded.outputs if self.online else None
        body, head = protocol.encode(
            answer(x), OUTPUTS, wanted=wanted, binary=True, envelope={"model_name": "m"}
        )
        headers = {"content-type": "application/octet-stream", "variant": "a", "deadline-met": "true"}
        return httpx.Response(200, content=body, headers={**headers, protocol.HEADER_LENGTH: str(head)})

    def forget_jobs(self) -> None:
        self._jobs.clear()
        self._keys.clear()


class FaultyDisk(Disk):
    """Counts what is done to files; stops in the middle of operation ``stop_at``, or right after it."""

    def __init__(self, stop_at: float = -1) -> None:
        self.stop_at, self.count, self.dead = stop_at, 0, False

    def open(self, path: Path) -> AppendFile:
        return FaultyFile(path, self)

    def step(self, half: Callable[[], object], whole: Callable[[], object]) -> None:
        if self.dead:
            raise Crash
        self.count += 1
        self.dead = self.count in (self.stop_at, self.stop_at + 0.5)
        if self.count == self.stop_at + 0.5:
            half()
            raise Crash
        whole()
        if self.dead:
            raise Crash

    def overwrite(self, path: Path, data: bytes) -> None:
        with path.open("r+b") as file:
            self.step(lambda: file.write(data[: len(data) // 2]), lambda: file.write(data))

    def replace(self, source: Path, target: Path) -> None:
        self.step(lambda: None, lambda: source.replace(target))

    def remove(self, path: Path) -> None:
        self.step(lambda: None, lambda: super(FaultyDisk, self).remove(path))


class FaultyFile(AppendFile):
    def __init__(self, path: Path, disk: FaultyDisk) -> None:
        super().__init__(path)
        self._disk = disk

    def append(self, data: bytes) -> None:
        real = super().append
        self._disk.step(lambda: real(data[: len(data) // 2]), lambda: real(data))

    def truncate(self, size: int) -> None:
        real = super().truncate
        self._disk.step(lambda: None, lambda: real(size))

    def sync(self) -> None:
        # Only the machine's fall would tell the difference, and it takes most of a test's time.
        self._disk.step(lambda: None, lambda: None)


def order_of(source: Path, results: Path, **changes: Any) -> Order:
    settings: dict[str, Any] = {"rows_per_request": 8, "concurrency": 2, **changes}
    return Order("m", source, results, settings.pop("budget", "2h"), **settings)


def client_of(server: BulkServer, clock: Clock | None = None) -> AsyncClient:
    clock = clock or Clock()
    return AsyncClient(
        "http://router.test",
        transport=httpx.MockTransport(server),
        clock=clock,
        sleep=clock.async_sleep,
        jitter=lambda: 0.0,
    )


async def submit(
    server: BulkServer,
    order: Order,
    *,
    disk: Disk | None = None,
    clock: Clock | None = None,
    model: ModelInfo = INFO,
    restart: bool = False,
    sync_always: bool = False,
) -> BulkProgress:
    """One process of a bulk run."""
    clock, ticks = clock or Clock(), itertools.count(0.0, 2.0)

    def tick() -> float:
        return next(ticks)

    return await run(
        client_of(server, clock),
        model,
        order,
        report=lambda tally: None,
        restart=restart,
        disk=disk or FaultyDisk(),
        clock=tick if sync_always else clock,
    )
