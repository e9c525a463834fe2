"""The online replica: a Ray Serve deployment that runs the batch it is handed, on the variant it is told.

The router forms the batches, so this side has no queue of its own beyond the one batch that waits
while another runs.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from optimizers import artifact
from optimizers.runner import Runner, load
from optimizers.tensors import Tensors, TensorSpec, concat, pack, split, unpack
from workers.model_thread import describe, run_jobs

#: A batch shorter than this may run on the event loop, which Serve's health checks share.
_INLINE_MS = 1.0
#: All reasons of a batch must fit the header of one message.
_REASON_CHARS = 300
#: At INFO, Serve makes a record of every call, and throws it away where the access log is off.
LOGGING = {"log_level": "WARNING", "enable_access_log": False}

T = TypeVar("T")


class BatchRunner:
    """Holds every online variant of one model and answers `run` calls one batch at a time.

    It knows nothing of Serve: the router may have one of its own for a model that takes less time than a
    call to another process.
    """

    def __init__(self, model: str, artifacts: str, variants: Sequence[str], threads: int) -> None:
        self._model = model
        # One thread, so that batches run in the order they came and the event loop stays free for
        # Serve's health checks; the runtimes release the interpreter lock while they compute.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{model}-online")
        self._runners: dict[str, Runner] = {}
        #: What a batch of each variant takes at most these days; falls slowly, rises at once.
        self._usual_ms: dict[str, float] = {}
        self._running = 0
        #: What all batches together ran so far.
        self._ran_ms = 0.0
        for variant in variants:
            runner = load(artifact.read(f"{artifacts}/{variant}"), threads=threads)
            runner.run(example_batch(runner.inputs))
            self._runners[variant] = runner

    async def run(self, variant: str, message: bytes) -> bytes:
        """Run one batch: an `optimizers.tensors.pack` message in, another out.

        The message's parameter ``rows`` lists the rows of each request in it. The answer's parameters
        tell ``wait_ms``, how long the batch waited here for the one before it, and ``run_ms``, how long it
        ran; ``ran_ms``, how long all batches together have run so far, by which each of several routers
        learns how much of this replica the others take; and where some requests make the model fail,
        ``bad``: pairs of a request's place in the batch and the reason. The outputs are then those of the
        others.

        Raises KeyError for a variant this replica does not hold, `workers.model_thread.ModelFault` where
        no request is to blame.
        """
        runner = self._runners[variant]
        arrived = time.perf_counter()
        try:
            if not self._running and self._usual_ms.get(variant, math.inf) < _INLINE_MS:
                # Handing so short a batch to the thread and back would cost more than running it.
                reply, ran_ms = self._run(runner, message, arrived)
            else:
                reply, ran_ms = await self._apart(self._run, runner, message, arrived)
        except Exception as error:
            return await self._apart(_run_apart, runner, message, arrived, error)
        usual_ms = self._usual_ms.get(variant, ran_ms)
        self._usual_ms[variant] = max(ran_ms, 0.9 * usual_ms + 0.1 * ran_ms)
        return reply

    def _run(self, runner: Runner, message: bytes, arrived: float) -> tuple[bytes, float]:
        """One batch. In the model's thread, or on the event loop while that thread has nothing to do."""
        started = time.perf_counter()
        inputs, _ = unpack(message)
        outputs = runner.run(inputs)
        ended = time.perf_counter()
        wait_ms, run_ms = (started - arrived) * 1e3, (ended - started) * 1e3
        self._ran_ms += run_ms
        return pack(outputs, {"wait_ms": wait_ms, "run_ms": run_ms, "ran_ms": self._ran_ms}), run_ms

    async def _apart(self, function: Callable[..., T], *args: object) -> T:
        """In the model's thread, behind what runs there."""
        self._running += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)
        finally:
            self._running -= 1

    async def check_health(self) -> None:
        """Returns while the model's thread is alive and not stuck."""
        await asyncio.get_running_loop().run_in_executor(self._thread, _nothing)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        for runner in self._runners.values():
            runner.close()


class OnlineReplica(BatchRunner):
    """A Serve replica, which Serve restarts when ``check_health`` raises or does not return."""

    async def identify(self) -> tuple[str, Any]:
        """This replica's id, and its actor: whoever has that can call it without a Serve handle."""
        import ray

        actor = ray.get_runtime_context().current_actor
        return actor._actor_id.hex(), actor

    async def __del__(self) -> None:
        self.close()


def _run_apart(runner: Runner, message: bytes, arrived: float, error: Exception) -> bytes:
    """Run a batch that failed by bisection; the requests at fault are told why, the others answered."""
    started = time.perf_counter()
    inputs, parameters = unpack(message)
    rows = parameters.get("rows")
    if not rows:
        raise error
    answers = run_jobs(_Bare(runner), "", sum(rows), split(inputs, rows))
    bad = [(n, describe(a)[:_REASON_CHARS]) for n, a in enumerate(answers) if isinstance(a, Exception)]
    good = [answer for answer in answers if not isinstance(answer, Exception)]
    wait_ms, run_ms = (started - arrived) * 1e3, (time.perf_counter() - started) * 1e3
    return pack(concat(good) if good else {}, {"wait_ms": wait_ms, "run_ms": run_ms, "bad": bad})


class _Bare:
    """A runner as `workers.model_thread.run_jobs` takes a model."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def run(self, variant: str, batch: Tensors) -> Tensors:
        return self._runner.run(batch)

    def probe(self, variant: str) -> None:
        self._runner.run(example_batch(self._runner.inputs))


def _nothing() -> None:
    """Runs on the model's thread: that it returns shows that the thread is alive and not stuck."""


def example_batch(specs: Sequence[TensorSpec], rows: int = 1) -> Tensors:
    """A valid batch of zeros (empty strings for BYTES), for warming up; open sizes become 1."""
    batch: Tensors = {}
    for spec in specs:
        shape = (rows, *(1 if size < 0 else size for size in spec.shape[1:]))
        fill: Any = b"" if spec.datatype == "BYTES" else 0
        batch[spec.name] = np.full(shape, fill, dtype=spec.dtype)
    return batch


def deployment(model: str, artifacts: str, variants: Sequence[str], *, replicas: int, threads: int) -> Any:
    """The bound Serve deployment ``{model}-online``."""
    from ray import serve

    return serve.deployment(
        name=f"{model}-online",
        num_replicas=replicas,
        # The router counts what is in flight; Serve's own limit must never be the one that holds.
        max_ongoing_requests=10_000,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=1.0,
        health_check_timeout_s=10.0,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=10.0,
        logging_config=LOGGING,
    )(OnlineReplica).bind(model, artifacts, list(variants), threads)
