"""The SDK: ask a hybrid-router server for inference, now or by a deadline.

>>> from router import Client
>>> with Client("http://127.0.0.1:8000") as client:
...     result = client.infer("digits", image, budget="1s")
>>> result.outputs["label"], result.path, result.deadline_met
(array([3]), 'online', True)

:class:`Client` blocks, :class:`AsyncClient` is awaited; both do what :mod:`router.sdk.core` says.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from router.sdk.base import BaseClient, length_of
from router.sdk.codec import ModelInfo, Result
from router.sdk.deadline import Budget
from router.sdk.effects import Options, Send, Sleep
from router.sdk.errors import HybridRouterError
from router.sdk.jobs import Job
from router.sdk.map import MapPlan, Progress, stopped
from router.sdk.progress import reporter
from router.sdk.window import END, Emit, Finish, Pull, StartWork, Together, Work

if TYPE_CHECKING:
    import threading

    import httpx

T = TypeVar("T")


class Client(BaseClient):
    """A connection to one server; safe to share between threads, best kept for many calls.

    A forked child may go on with it: it opens connections of its own. A ``map`` that the parent began is
    the parent's alone.

    ``key`` is the API key (default: the environment's HYBRID_ROUTER_KEY; "" for none), ``tenant`` the
    tenant to act for where no key says it. ``timeout`` ends calls that have no budget. ``grace`` is how
    long after its budget a call still waits for the server's word. ``retry_for`` is how long an
    unreachable server is tried again, within the budget. ``transport`` is one of httpx's, for a private
    CA or a proxy; the environment's proxies are not used. Durations are written like budgets.

    Every call may raise a :class:`~router.sdk.errors.HybridRouterError`; a budget that is none raises
    ValueError.

    >>> client = Client("http://127.0.0.1:8000", timeout="10s")
    >>> client.ready()
    True
    >>> client.close()
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        tenant: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: Budget = "30s",
        grace: Budget = "1s",
        retry_for: Budget = "30s",
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(
            url,
            key=key,
            tenant=tenant,
            headers=headers,
            timeout=timeout,
            grace=grace,
            retry_for=retry_for,
            clock=clock,
            jitter=jitter,
        )
        self._sleep = sleep
        self._transport = self._http.transport(transport)

    def infer(
        self,
        model: str,
        inputs: object,
        budget: Budget | None = None,
        *,
        variant: str | None = None,
        idempotency_key: str | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Result:
        """Run ``model`` and give its answer within ``budget``.

        ``inputs`` is an array, nested lists, a torch tensor or text for a model with one input, else a
        dict by name; one sample without a batch axis gets one. ``variant`` pins a variant, ``outputs``
        picks outputs by name. An answer that came late is given, with ``deadline_met`` False.

        >>> result = client.infer("digits", image, budget="1s")
        >>> result.outputs["label"]
        array([3])
        >>> client.infer("digits", {"image": [image, image]}, variant="int8").outputs["scores"].shape
        (2, 10)
        """
        options = Options(variant, idempotency_key, outputs, parameters)
        return self._drive(self._core.infer(model, inputs, self._core.limit(budget), options))

    def submit(
        self,
        model: str,
        inputs: object,
        budget: Budget | None = None,
        *,
        variant: str | None = None,
        idempotency_key: str | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Job:
        """Hand in work that may take its time; the server holds it durably and answers by the deadline.

        Sent again with the same ``idempotency_key`` it is the same request, and is run once.

        >>> job = client.submit("digits", [image, image], budget="10min", outputs=["label"])
        >>> job.result().outputs
        {'label': array([3, 3])}
        """
        options = Options(variant, idempotency_key, outputs, parameters)
        return Job(self, self._drive(self._core.submit(model, inputs, self._core.limit(budget), options)))

    def job(self, id: str, *, outputs: Sequence[str] | None = None) -> Job:
        """A request that was submitted before, perhaps by another process. ``outputs`` picks some by name.

        >>> id = client.submit("digits", image, budget="10min").id
        >>> client.job(id, outputs=["label"]).result().outputs
        {'label': array([3])}
        """
        return Job(self, self._core.ticket(id, outputs))

    @overload
    def map(
        self,
        model: str,
        items: Iterable[object],
        budget: Budget | None = None,
        *,
        rows_per_request: int = 64,
        concurrency: int = 8,
        progress: bool | Progress = False,
        on_error: Literal["raise"] = "raise",
        variant: str | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Iterator[Result]: ...

    @overload
    def map(
        self,
        model: str,
        items: Iterable[object],
        budget: Budget | None = None,
        *,
        rows_per_request: int = 64,
        concurrency: int = 8,
        progress: bool | Progress = False,
        on_error: Literal["return"],
        variant: str | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Iterator[Result | HybridRouterError]: ...

    def map(
        self,
        model: str,
        items: Iterable[object],
        budget: Budget | None = None,
        *,
        rows_per_request: int = 64,
        concurrency: int = 8,
        progress: bool | Progress = False,
        on_error: str = "raise",
        variant: str | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Iterator[Any]:
        """One result for each item, in order; ``budget`` is for all of them together.

        An item is one sample without batch axis, or a dict of them; so are the results' outputs.
        ``rows_per_request`` items go in one request, ``concurrency`` requests are in flight: no more is
        held in memory, so ``items`` may be a generator without end. A request that fails raises at its
        first item, or with ``on_error="return"`` gives its error in place of each item's result; one that is
        refused for an item in it is sent again by halves until that item is alone.
        Leaving the loop cancels what is in flight. ``progress`` draws a bar, or is told (done, total).

        >>> [int(r.outputs["label"]) for r in client.map("digits", [image, image], budget="1h")]
        [3, 3]
        """
        options = Options(variant, outputs=outputs, parameters=parameters)
        plan = self._plan(model, budget, rows_per_request, concurrency, options, on_error)
        return self._run_map(plan, items, model, concurrency, progress)

    def cancel(self, id: str) -> bool:
        """Cancel a request. True if it is cancelled, False if it had already ended. Raises JobUnknown.

        >>> job = client.submit("digits", image, budget="10min")
        >>> _ = job.result()
        >>> client.cancel(job.id)
        False
        """
        return self._drive(self._core.cancel(id))

    def models(self) -> list[ModelInfo]:
        """The models that the server serves to this key.

        >>> "digits" in [model.name for model in client.models()]
        True
        """
        return self._drive(self._core.models())

    def model(self, name: str) -> ModelInfo:
        """A model's variants, inputs and outputs. Raises ModelNotFound.

        >>> client.model("digits").versions
        ('float32', 'int8', 'tree')
        """
        return self._drive(self._core.model(name))

    def stats(self, name: str) -> dict[str, Any]:
        """What waits and runs for a model now, as the server counts it. Raises ModelNotFound.

        >>> client.stats("digits")["name"]
        'digits'
        """
        return self._drive(self._core.stats(name))

    def ready(self) -> bool:
        """Whether the server can be reached and takes requests. Never raises for one that cannot.

        >>> client.ready()
        True
        """
        return self._drive(self._core.ready())

    def close(self) -> None:
        """Close the connections; leaving a ``with`` block does it too.

        >>> client.close()
        """
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drive(self, flow: Work[T], stop: threading.Event | None = None) -> T:
        try:
            step = next(flow)
            while True:
                step = flow.send(self._perform(step, stop))
        except StopIteration as end:
            value: T = end.value
            return value

    def _perform(self, step: Send | Sleep | Together, stop: threading.Event | None = None) -> Any:
        if isinstance(step, Together):  # in this thread: as many threads as requests may be in flight
            return [self._drive(flow, stop) for flow in step.flows]
        if isinstance(step, Sleep):
            pause = self._sleep or (stop.wait if stop is not None else time.sleep)
            pause(step.seconds)
            if stop is not None and stop.is_set():
                raise stopped()
            return None
        try:
            response = self._transport.handle_request(self._http.request(step))
            response.read()
            return self._http.reply(response)
        except self._http.errors as error:
            return self._http.no_response(error, step)

    def _run_map(
        self,
        plan: MapPlan,
        items: Iterable[object],
        title: str,
        concurrency: int,
        progress: bool | Progress,
    ) -> Iterator[Any]:
        import threading
        from concurrent.futures import ThreadPoolExecutor

        source, total, done = iter(items), length_of(items), 0
        stop = threading.Event()
        pool = ThreadPoolExecutor(concurrency, "hybrid-router-map")
        steps, answer = plan.run(), None
        try:
            with reporter(progress, title) as report:
                while True:
                    try:
                        step = steps.send(answer)
                    except StopIteration:
                        return
                    answer = None
                    if isinstance(step, Emit):
                        done += 1
                        report(done, total)
                        yield step.value
                    elif isinstance(step, Pull):
                        answer = next(source, END)
                    elif isinstance(step, StartWork):
                        answer = pool.submit(self._drive, step.work, stop)
                    elif isinstance(step, Finish):
                        try:
                            answer = step.handle.result()
                        except HybridRouterError as error:
                            answer = error
                    else:
                        answer = self._perform(step)
        finally:
            if plan.is_here():  # a forked child has neither the threads nor the right to cancel
                stop.set()
                self._drive(plan.abandon())
                # Without waiting: a thread in a poll ends when the server has cancelled its request.
                pool.shutdown(wait=False, cancel_futures=True)
