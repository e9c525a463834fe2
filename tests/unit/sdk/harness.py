"""A server in memory for the SDK's tests: the router's own codec behind httpx.MockTransport, and a clock."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import httpx
import numpy as np

from optimizers.tensors import Array, TensorSpec
from router.ingress.codec import protocol
from router.sdk.async_client import AsyncClient
from router.sdk.client import Client
from router.sdk.core import ClientCore
from router.sdk.effects import Options, Send, Sleep
from router.sdk.responses import NoResponse, Reply
from router.sdk.window import Together, Work

T = TypeVar("T")

IMAGE = TensorSpec("image", "FP32", (-1, 2, 2))
ONE = np.full((2, 2), 3.0)
SCORES = TensorSpec("scores", "FP32", (-1, 10))


class Clock:
    """Virtual time: sleeping is what moves it."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def async_sleep(self, seconds: float) -> None:
        self.sleep(seconds)


def score(images: Array) -> Array:
    """Stands for a model: the mean pixel's own column scores 1."""
    best = np.round(images.mean(axis=(1, 2))).astype(int) % 10
    scores: Array = np.eye(10, dtype=np.float32)[best]
    return scores


Scripted = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]


def problem(
    status: int, detail: str = "because", headers: dict[str, str] | None = None, **members: Any
) -> httpx.Response:
    body = {"type": "about:blank", "title": "No", "status": status, "detail": detail, **members}
    kind = {"content-type": "application/problem+json"}
    return httpx.Response(status, json=body, headers={**kind, **(headers or {})})


def bare(status: int) -> httpx.Response:
    """What HAProxy says by itself."""
    page = f"<html><body><h1>{status}</h1></body></html>"
    return httpx.Response(status, content=page, headers={"content-type": "text/html"})


def pending(id_: str = "r1", state: str = "pending") -> httpx.Response:
    return httpx.Response(202, json={"id": id_, "state": state}, headers={"location": f"/v2/requests/{id_}"})


class FakeServer:
    """Serves ``digits``. ``script`` answers the first requests to infer and about requests; then it works.

    With ``queue`` it answers every infer by 202 and gives the result at the next poll.
    """

    def __init__(
        self, *script: Scripted, inputs: tuple[TensorSpec, ...] = (IMAGE,), queue: bool = False
    ) -> None:
        self.script = deque(script)
        self.inputs = inputs
        self.queue = queue
        self.requests: list[httpx.Request] = []
        self.cancelled: list[str] = []
        self._held: dict[str, tuple[bytes, dict[str, str]]] = {}
        self._lock = threading.Lock()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        with self._lock:
            self.requests.append(request)
            path = request.url.path
            if request.method == "GET" and path.startswith("/v2/models"):
                return self._describe(path)
            if path.startswith("/v2/health"):
                return httpx.Response(200, json={"ready": True})
            if self.script:
                scripted = self.script.popleft()
                if isinstance(scripted, Exception):
                    raise scripted
                return scripted(request) if callable(scripted) else scripted
            if path.startswith("/v2/requests/"):
                return self._request(request.method, path.rpartition("/")[2])
            return self._infer(request)

    def _describe(self, path: str) -> httpx.Response:
        about = {
            "name": "digits",
            "versions": ["float32", "int8"],
            "platform": "test",
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [SCORES.to_json()],
        }
        if path == "/v2/models":
            return httpx.Response(200, json={"models": [about]})
        return httpx.Response(200, json=about) if path.endswith("/digits") else problem(404, "no such model")

    def _infer(self, request: httpx.Request) -> httpx.Response:
        length = request.headers.get(protocol.HEADER_LENGTH)
        decoded = protocol.decode(request.content, None if length is None else int(length))
        body, head = protocol.encode(
            {"scores": score(decoded.inputs["image"])},
            [SCORES],
            wanted=decoded.outputs,
            binary=decoded.binary,
            envelope={"model_name": "digits", "id": "", "parameters": {"route": "r"}},
        )
        headers = {
            protocol.HEADER_LENGTH: str(head),
            "content-type": "application/octet-stream",
            "route": "interactive",
            "path": "batch" if self.queue else "online",
            "variant": "int8",
            "predicted-ms": "3.5",
            "queued-ms": "0.25",
            "deadline-met": "true",
        }
        if not self.queue:
            return httpx.Response(200, content=body, headers=headers)
        id_ = f"r{len(self._held)}"
        self._held[id_] = (body, headers)
        return pending(id_)

    def _request(self, method: str, id_: str) -> httpx.Response:
        if method == "DELETE":
            self.cancelled.append(id_)
            return httpx.Response(200, json={"id": id_, "state": "cancelled"})
        if id_ not in self._held:
            return problem(404, f"no request {id_}")
        body, headers = self._held[id_]
        return httpx.Response(200, content=body, headers=headers)

    def sent(self, method: str, under: str = "/") -> list[httpx.Request]:
        return [r for r in self.requests if r.method == method and r.url.path.startswith(under)]

    @property
    def posts(self) -> list[httpx.Request]:
        return self.sent("POST")

    @property
    def polls(self) -> list[httpx.Request]:
        return self.sent("GET", "/v2/requests/")


def client_of(server: FakeServer, clock: Clock | None = None, **settings: Any) -> Client:
    clock = clock or Clock()
    return Client(
        "http://router.test",
        transport=httpx.MockTransport(server),
        clock=clock,
        sleep=clock.sleep,
        jitter=lambda: 0.0,
        **settings,
    )


def async_client_of(server: FakeServer, clock: Clock | None = None, **settings: Any) -> AsyncClient:
    clock = clock or Clock()
    return AsyncClient(
        "http://router.test",
        transport=httpx.MockTransport(server),
        clock=clock,
        sleep=clock.async_sleep,
        jitter=lambda: 0.0,
        **settings,
    )


class Bench:
    """A core, a clock and a server in memory. ``latency_s`` is what each exchange takes."""

    def __init__(self, *script: Any, latency_s: float = 0.001, jitter: float = 0.0, **kw: Any) -> None:
        self.clock = Clock()
        self.server = FakeServer(*script, **kw)
        self.latency_s = latency_s
        self.steps: list[Send | Sleep] = []
        self.core = ClientCore(
            "http://router.test",
            clock=self.clock,
            jitter=lambda: jitter,
            headers={"User-Agent": "test"},
            timeout_s=30.0,
            grace_s=1.0,
            retry_for_s=30.0,
        )

    def drive(self, flow: Work[T]) -> T:
        answer: Any = None
        try:
            while True:
                step = flow.send(answer)
                if isinstance(step, Together):
                    answer = [self.drive(request) for request in step.flows]
                    continue
                self.steps.append(step)
                answer = self.perform(step)
        except StopIteration as end:
            value: T = end.value
            return value

    def perform(self, step: Send | Sleep) -> Reply | NoResponse | None:
        if isinstance(step, Sleep):
            self.clock.sleep(step.seconds)
            return None
        self.clock.now += self.latency_s
        request = httpx.Request(
            step.method, f"http://router.test{step.path}", headers=step.headers, content=step.content
        )
        try:
            response = self.server(request)
        except httpx.ReadTimeout as error:
            self.clock.now += step.timeout_s - self.latency_s
            return NoResponse(str(error), late=True)
        except httpx.TransportError as error:
            return NoResponse(str(error))
        return Reply(response.status_code, dict(response.headers), response.content)

    def infer(self, budget: str | None = "1s", inputs: object = ONE, **options: Any) -> Any:
        return self.drive(self.core.infer("digits", inputs, self.core.limit(budget), Options(**options)))

    @property
    def budgets(self) -> list[float]:
        return [float(r.headers["latency-budget-ms"]) for r in self.server.posts]
