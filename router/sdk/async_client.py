"""The SDK for asyncio: :class:`AsyncClient`, the twin of :class:`router.Client`.

>>> from router import AsyncClient
>>> async with AsyncClient("http://127.0.0.1:8000") as client:
...     first, second = await asyncio.gather(
...         client.infer("digits", image, budget="1s"), client.infer("digits", image, budget="1s")
...     )
>>> first.outputs["label"], second.outputs["label"]
(array([3]), array([3]))
"""

from __future__ import annotations

import random
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from router.sdk.base import BaseClient, length_of
from router.sdk.codec import ModelInfo, Result
from router.sdk.deadline import Budget
from router.sdk.effects import Flow, Options, Send, Sleep
from router.sdk.errors import HybridRouterError
from router.sdk.jobs import AsyncJob
from router.sdk.map import Progress
from router.sdk.progress import reporter
from router.sdk.window import END, Emit, Finish, OrderedPlan, Pull, StartWork, Together, Work

if TYPE_CHECKING:
    import asyncio

    import httpx

T = TypeVar("T")
Items = Iterable[object] | AsyncIterable[object]


class AsyncClient(BaseClient):
    """The twin of :class:`router.Client`: the same settings, calls and errors, awaited.

    To be used from one event loop; a forked child may use it from one of its own. Cancelling a task
    ends its call here; what the server has already taken ends there by its deadline.

    >>> client = AsyncClient("http://127.0.0.1:8000", timeout="10s")
    >>> async with client.deadline("2s"):
    ...     result = await client.infer("digits", image)
    >>> result.outputs["label"]
    array([3])
    >>> await client.close()
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
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] | None = None,
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
        self._transport = self._http.async_transport(transport)

    async def infer(
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
        """Run ``model`` and give its answer within ``budget``; see :meth:`router.Client.infer`.

        >>> result = await client.infer("digits", image, budget="1s")
        >>> result.outputs["label"]
        array([3])
        """
        options = Options(variant, idempotency_key, outputs, parameters)
        return await self._drive(self._core.infer(model, inputs, self._core.limit(budget), options))

    async def submit(
        self,
        model: str,
        inputs: object,
        budget: Budget | None = None,
        *,
        variant: str | None = None,
        idempotency_key: str | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> AsyncJob:
        """Hand in work that may take its time; see :meth:`router.Client.submit`.

        >>> job = await client.submit("digits", [image, image], budget="10min", outputs=["label"])
        >>> (await job.result()).outputs
        {'label': array([3, 3])}
        """
        options = Options(variant, idempotency_key, outputs, parameters)
        flow = self._core.submit(model, inputs, self._core.limit(budget), options)
        return AsyncJob(self, await self._drive(flow))

    def job(self, id: str, *, outputs: Sequence[str] | None = None) -> AsyncJob:
        """A request that was submitted before; see :meth:`router.Client.job`.

        >>> id = (await client.submit("digits", image, budget="10min")).id
        >>> (await client.job(id, outputs=["label"]).result()).outputs
        {'label': array([3])}
        """
        return AsyncJob(self, self._core.ticket(id, outputs))

    @overload
    def map(
        self,
        model: str,
        items: Items,
        budget: Budget | None = None,
        *,
        rows_per_request: int = 64,
        concurrency: int = 8,
        progress: bool | Progress = False,
        on_error: Literal["raise"] = "raise",
        variant: str | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[Result]: ...

    @overload
    def map(
        self,
        model: str,
        items: Items,
        budget: Budget | None = None,
        *,
        rows_per_request: int = 64,
        concurrency: int = 8,
        progress: bool | Progress = False,
        on_error: Literal["return"],
        variant: str | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[Result | HybridRouterError]: ...

    def map(
        self,
        model: str,
        items: Items,
        budget: Budget | None = None,
        *,
        rows_per_request: int = 64,
        concurrency: int = 8,
        progress: bool | Progress = False,
        on_error: str = "raise",
        variant: str | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[Any]:
        """One result for each item, in order; see :meth:`router.Client.map`. Items may come asynchronously.

        To leave the loop early and cancel at once what is in flight, close the iterator
        (``contextlib.aclosing``); else that is done when it is collected.

        >>> [int(r.outputs["label"]) async for r in client.map("digits", [image, image], budget="1h")]
        [3, 3]
        """
        options = Options(variant, outputs=outputs, parameters=parameters)
        plan = self._plan(model, budget, rows_per_request, concurrency, options, on_error)
        return self._run_plan(plan, items, concurrency, progress, model)

    async def cancel(self, id: str) -> bool:
        """Cancel a request. True if it is cancelled, False if it had already ended. Raises JobUnknown.

        >>> job = await client.submit("digits", image, budget="10min")
        >>> _ = await job.result()
        >>> await client.cancel(job.id)
        False
        """
        return await self._drive(self._core.cancel(id))

    async def models(self) -> list[ModelInfo]:
        """The models that the server serves to this key.

        >>> "digits" in [model.name for model in await client.models()]
        True
        """
        return await self._drive(self._core.models())

    async def model(self, name: str) -> ModelInfo:
        """A model's variants, inputs and outputs. Raises ModelNotFound.

        >>> (await client.model("digits")).versions
        ('float32', 'int8', 'tree')
        """
        return await self._drive(self._core.model(name))

    async def stats(self, name: str) -> dict[str, Any]:
        """What waits and runs for a model now, as the server counts it. Raises ModelNotFound.

        >>> (await client.stats("digits"))["name"]
        'digits'
        """
        return await self._drive(self._core.stats(name))

    async def ready(self) -> bool:
        """Whether the server can be reached and takes requests. Never raises for one that cannot.

        >>> await client.ready()
        True
        """
        return await self._drive(self._core.ready())

    async def close(self) -> None:
        """Close the connections; leaving an ``async with`` block does it too.

        >>> await client.close()
        """
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _drive(self, flow: Work[T], turns: asyncio.Semaphore | None = None) -> T:
        try:
            step = next(flow)
            while True:
                step = flow.send(await self._perform(step, turns))
        except StopIteration as end:
            value: T = end.value
            return value

    async def _perform(self, step: Send | Sleep | Together, turns: asyncio.Semaphore | None = None) -> Any:
        if isinstance(step, Together):
            from router.sdk.gather import gather

            assert turns is not None  # only a plan's work yields this
            return await gather([self._drive_in_turn(flow, turns) for flow in step.flows])
        if isinstance(step, Sleep):
            if self._sleep is not None:
                await self._sleep(step.seconds)
            else:
                import asyncio

                await asyncio.sleep(step.seconds)
            return None
        try:
            response = await self._transport.handle_async_request(self._http.request(step))
            await response.aread()
            return self._http.reply(response)
        except self._http.errors as error:
            return self._http.no_response(error, step)

    async def _drive_in_turn(self, flow: Flow[T], turns: asyncio.Semaphore) -> T:
        async with turns:
            return await self._drive(flow)

    async def _run_plan(
        self,
        plan: OrderedPlan[Any],
        items: Items,
        concurrency: int,
        progress: bool | Progress = False,
        title: str = "",
    ) -> AsyncGenerator[Any, None]:
        """What the plan hands out, with at most ``concurrency`` of its requests in flight."""
        import asyncio

        source, total, done = _each(items), length_of(items), 0
        tasks: set[asyncio.Task[Any]] = set()
        steps, answer, turns = plan.run(), None, asyncio.Semaphore(concurrency)
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
                        answer = await anext(source, END)
                    elif isinstance(step, StartWork):
                        answer = asyncio.create_task(self._drive(step.work, turns))
                        tasks.add(answer)
                    elif isinstance(step, Finish):
                        try:
                            answer = await step.handle
                        except HybridRouterError as error:
                            answer = error
                        tasks.discard(step.handle)
                    else:
                        answer = await self._perform(step)
        finally:
            if plan.is_here():  # in a forked child nothing of it is its own to end
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._drive(plan.abandon())
            await source.aclose()


async def _each(items: Items) -> AsyncGenerator[object, None]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
