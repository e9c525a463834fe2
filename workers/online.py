"""The online replica: a Ray Serve deployment that runs the batches that the router sends it.

The router forms the batches, so this side has no queue of its own beyond the one batch that waits
while another runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import numpy as np

from optimizers.tensors import Tensors, pack, rows_of, split, unpack
from workers.execution.faults import Bounds, RunResult, describe, find_faults
from workers.execution.loaded_variant import LoadedVariant
from workers.execution.model_thread import ModelThread, attempt
from workers.execution.work_limits import WorkLimit, limit_for

#: A batch shorter than this may run on the event loop, which Serve's health checks share.
_INLINE_MS = 1.0
#: All reasons of a batch must fit the header of one message.
_REASON_CHARS, _ALL_REASONS_CHARS = 300, 500_000
#: The rows at fault are looked for as long as finding one of them takes, which is twice the batch's own time,
#: and a little longer.
_SEARCH_TIMES, _SEARCH_MS = 3.0, 100.0
#: At INFO, Serve makes a record of every call, and throws it away where the access log is off.
LOGGING = {"log_level": "WARNING", "enable_access_log": False}

T = TypeVar("T")
Watched = AbstractContextManager[None]
#: A batch on the event loop is not watched: the loop itself would have to look.
_NOT_WATCHED = nullcontext()


class BatchRunner:
    """Holds every online variant of one model and answers `run` calls one batch at a time.

    It knows nothing of Serve: the router may have one of its own for a model that takes less time than a
    call to another process. ``hung_after_ms`` is how long a batch may compute, or be blocked, before the
    replica counts as hung; by default that follows from the variant's profile.
    """

    def __init__(
        self,
        model: str,
        artifacts: str,
        variants: Sequence[str],
        threads: int,
        hung_after_ms: float | None = None,
    ) -> None:
        self._model, self._hung_after_ms = model, hung_after_ms
        # One thread, so that batches run in order of arrival and the event loop stays free for Serve's health
        # checks; the runtimes release the interpreter lock while they compute. It is made before the variants
        # are loaded: its watch recognizes the threads of a runtime by their later start.
        self._thread = ModelThread(f"{model}-online", sched_idle=False)
        #: What a batch of each variant lately took at most; falls slowly, rises at once.
        self._usual_ms: dict[str, float] = {}
        self._running = 0
        #: What all batches together ran so far.
        self._ran_ms = 0.0
        self._loaded = {name: LoadedVariant(f"{artifacts}/{name}", threads) for name in variants}

    async def run(self, variant: str, message: bytes) -> bytes:
        """Run one batch: an `optimizers.tensors.pack` message in, another out.

        The message's parameter ``rows`` lists the rows of each request in it. The answer's parameters
        are ``wait_ms``, how long the batch waited here for the one before it; ``run_ms``, how long it ran;
        ``ran_ms``, how long all batches together have run so far, from which each of several routers learns
        how much of this replica the others use; and, where some requests make the model fail, ``bad``: pairs
        of a request's index in the batch and the reason. The answer's one tensor is then ``answers``: the
        message of each of the other requests, in their order.

        Raises KeyError for a variant this replica does not hold, `workers.execution.faults.ModelFault` where
        no request is to blame.
        """
        if variant not in self._loaded:
            raise KeyError(variant)
        arrived = time.perf_counter()
        try:
            if not self._running and self._usual_ms.get(variant, math.inf) < _INLINE_MS:
                # Handing so short a batch to the thread and back would cost more than running it.
                reply, ran_ms = self._run(variant, message, arrived, lambda rows: _NOT_WATCHED)
            else:
                watched = partial(self._watched, variant)
                reply, ran_ms = await self._in_model_thread(self._run, variant, message, arrived, watched)
        except Exception as error:
            return await self._find_faults(variant, message, arrived, error)
        usual_ms = self._usual_ms.get(variant, ran_ms)
        self._usual_ms[variant] = max(ran_ms, 0.9 * usual_ms + 0.1 * ran_ms)
        return reply

    def _run(
        self, variant: str, message: bytes, arrived: float, watched: Callable[[int], Watched]
    ) -> tuple[bytes, float]:
        """One batch. In the model's thread, or on the event loop while that thread has nothing to do."""
        started = time.perf_counter()
        inputs, _ = unpack(message)
        with watched(rows_of(inputs)):
            outputs = self._loaded[variant].run(inputs)
        ended = time.perf_counter()
        wait_ms, run_ms = (started - arrived) * 1e3, (ended - started) * 1e3
        self._ran_ms += run_ms
        return pack(outputs, {"wait_ms": wait_ms, "run_ms": run_ms, "ran_ms": self._ran_ms}), run_ms

    def _watched(self, variant: str, rows: int) -> Watched:
        """Around what runs in the model's thread, so that `check_health` sees how long it takes."""
        if self._hung_after_ms is None:
            limit = limit_for(self._loaded[variant].profile.predict_ms(rows))
        else:
            limit = WorkLimit(self._hung_after_ms, self._hung_after_ms)
        return self._thread.watch.work(f"variant {variant!r}, a batch of {rows} rows,", limit)

    async def _find_faults(self, variant: str, message: bytes, arrived: float, error: Exception) -> bytes:
        """Run a failed batch by bisection: requests at fault get the reason, the others their answers.

        Each run goes behind the batches that wait, so that the search holds nobody else up for long.
        """
        inputs, parameters = unpack(message)
        rows = parameters.get("rows")
        if not rows:
            raise error
        loaded, ran_ms = self._loaded[variant], 0.0
        bounds = Bounds(ms=max(_SEARCH_MS, _SEARCH_TIMES * loaded.profile.predict_ms(sum(rows))))
        steps = find_faults(split(inputs, rows), sum(rows), error, bounds)
        try:
            step = next(steps)
            while True:
                run = await self._in_model_thread(self._run_step, variant, step)
                ran_ms += run.ms
                step = steps.send(run)
        except StopIteration as done:
            answers: list[Tensors | Exception] = done.value
        bad = [(n, answer) for n, answer in enumerate(answers) if isinstance(answer, Exception)]
        chars = min(_REASON_CHARS, _ALL_REASONS_CHARS // max(1, len(bad)))
        reply_parameters = {
            "bad": [(n, describe(reason)[:chars]) for n, reason in bad],
            "run_ms": ran_ms,
            "wait_ms": max(0.0, (time.perf_counter() - arrived) * 1e3 - ran_ms),
        }
        # One by one: what was run in different batches need not fit together.
        good = [pack(answer) for answer in answers if not isinstance(answer, Exception)]
        return pack({"answers": np.array(good, object)}, reply_parameters)

    def _run_step(self, variant: str, step: Tensors | None) -> RunResult:
        """One run of a search for faults, in the model's thread."""
        loaded = self._loaded[variant]
        with self._watched(variant, 1 if step is None else rows_of(step)):
            return attempt(loaded.run, loaded.probe, step)

    async def _in_model_thread(self, function: Callable[..., T], *args: object) -> T:
        """In the model's thread, behind what runs there."""
        self._running += 1
        try:
            return await self._thread.call(function, *args)
        finally:
            self._running -= 1

    async def check_health(self) -> None:
        """Raises while the model's thread works on something for longer than its size explains.

        It waits for nothing, least of all for the thread, which may be busy with a long batch.
        """
        problem = self._thread.watch.look()
        if problem is not None:
            raise RuntimeError(f"model {self._model}: {problem}")

    def close(self) -> None:
        self._thread.close()
        for loaded in self._loaded.values():
            loaded.close()


class OnlineReplica(BatchRunner):
    """A :class:`BatchRunner` as a Serve replica; Serve restarts it when ``check_health`` fails or hangs."""

    async def identify(self) -> tuple[str, Any]:
        """This replica's id and its actor, through which it can be called without a Serve handle."""
        import ray

        context = ray.get_runtime_context()
        return context.get_actor_id() or "", context.current_actor

    async def __del__(self) -> None:
        self.close()


def deployment(
    model: str,
    artifacts: str,
    variants: Sequence[str],
    *,
    replicas: int,
    threads: int,
    hung_after_ms: float | None = None,
) -> Any:
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
    )(OnlineReplica).bind(model, artifacts, list(variants), threads, hung_after_ms)
