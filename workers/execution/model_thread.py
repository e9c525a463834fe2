"""The thread in which a model runs, so that the event loop stays free. For batch work the thread has the
scheduling class ``SCHED_IDLE``: interactive work on the machine gets the processor first.

``SCHED_IDLE`` covers the calling thread and those it starts later, and cannot be undone without
privilege. So it is set before anything is loaded in this thread, and never in the event loop's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from optimizers.tensors import Tensors
from workers.execution.batch_model import BatchModel
from workers.execution.faults import RunResult, run_all
from workers.execution.work_watch import WorkWatch

T = TypeVar("T")
logger = logging.getLogger("ray.serve")


class ModelHangs(RuntimeError):
    """A call of the model takes longer than its size explains, and may never return."""


class ModelThread:
    """One thread; calls are awaited and run in the order they came. ``watch`` reports a call that hangs."""

    def __init__(self, name: str, *, sched_idle: bool = True) -> None:
        self.watch = WorkWatch()
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._closed = False
        # A daemon: Python waits at its end for every other thread, and one that hangs would keep the process.
        threading.Thread(target=self._serve, args=(sched_idle,), name=name, daemon=True).start()

    async def call(self, function: Callable[..., T], *args: object) -> T:
        """What ``function`` gives or raises. Raises RuntimeError after :meth:`close`."""
        if self._closed:
            raise RuntimeError("the model's thread was closed")
        future: Future[T] = Future()
        self._calls.put((future, partial(function, *args)))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the thread after what it runs; waits for nothing."""
        self._closed = True
        self._calls.put(None)

    def _serve(self, sched_idle: bool) -> None:
        if sched_idle:
            _yield_processor()
        while (call := self._calls.get()) is not None:
            future, function = call
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
            del call, future, function  # a batch is not kept while the thread waits for the next


def _yield_processor() -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (OSError, AttributeError) as error:
        logger.warning("batch work cannot yield the processor by SCHED_IDLE here: %s", error)


def run_jobs(
    model: BatchModel, variant: str, max_rows: int, jobs: list[Tensors]
) -> list[Tensors | Exception]:
    """Run jobs as one batch; one answer each: its outputs, or the error that its rows cause.

    Raises :class:`workers.execution.faults.ModelFault` when the model fails on its own probe too: then no row
    is to blame and nothing may be failed for it.
    """
    steps = run_all(jobs, max_rows)
    run, probe = partial(model.run, variant), partial(model.probe, variant)
    try:
        step = next(steps)
        while True:
            step = steps.send(attempt(run, probe, step))
    except StopIteration as done:
        answers: list[Tensors | Exception] = done.value
        return answers


def attempt(run: Callable[[Tensors], Tensors], probe: Callable[[], None], step: Tensors | None) -> RunResult:
    """Run one of :data:`workers.execution.faults.Steps`, in the model's thread."""
    started = time.perf_counter()
    answer: Tensors | Exception = {}
    try:
        if step is None:
            probe()
        else:
            answer = run(step)
    except Exception as error:  # each runtime raises its own
        answer = error
    return RunResult(answer, (time.perf_counter() - started) * 1e3)
