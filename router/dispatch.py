"""The online dispatcher: a bounded deadline heap per model in front of its replicas, one call per batch.

Requests wait here, not in the replicas, so that the batch is formed at the last moment, from the most
urgent that wait. Two batches may be in flight per replica: one runs, the next is already there.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import NamedTuple

from optimizers.tensors import Tensors, concat, pack, rows_of, split, unpack
from router.estimate import OnlineLoad, Variant
from router.lanes import Lanes, Start

Send = Callable[[str, bytes], Awaitable[bytes]]

#: A batch that takes longer than this many times its bound is taken for lost.
_STUCK_FACTOR, _STUCK_MS = 20.0, 5_000.0


class DispatchError(Exception):
    """Root of what `OnlineDispatcher.run` raises.

    ::

        DispatchError
        |- DeadlineHopeless    the deadline can no longer be met; the request was dropped before it ran
        |- ReplicaFailed       the replica died or failed, and a second try failed or came too late
        |- BadRows             the model fails on this request's rows; the rest of its batch was answered
        |- HeapFull            no room; nothing was queued
    """


class DeadlineHopeless(DispatchError):
    """The deadline passed, or came too close for even the smallest batch, while the request waited."""


class ReplicaFailed(DispatchError):
    """The batch could not be run. The message carries the reason; nothing of it was answered."""


class BadRows(DispatchError):
    """The model fails on rows of this request, alone too. The message is the model's own reason."""


class HeapFull(DispatchError):
    """The heap holds as many requests as the policy allows."""


class OnlineAnswer(NamedTuple):
    """One request's outputs, and how it got them. Times in ms; ``batch_rows`` of the largest batch."""

    outputs: Tensors
    variant: str
    queued_ms: float
    run_ms: float
    batch_rows: int


class _Waiting:
    __slots__ = ("arrived_ms", "deadline_ms", "droppable", "future", "inputs", "predicted_ms", "rows")

    def __init__(
        self,
        inputs: Tensors,
        rows: int,
        deadline_ms: float,
        arrived_ms: float,
        droppable: bool,
        predicted_ms: float,
    ) -> None:
        self.inputs, self.rows, self.deadline_ms, self.arrived_ms = inputs, rows, deadline_ms, arrived_ms
        self.droppable, self.predicted_ms = droppable, predicted_ms
        self.future: asyncio.Future[OnlineAnswer] = asyncio.get_running_loop().create_future()

    @property
    def left(self) -> bool:
        return self.future.done()


class OnlineDispatcher:
    """Deadline-ordered batching for one model: `router.lanes` decides, this sends and settles.

    ``send(variant, message)`` runs one packed batch on some replica and gives the packed answer;
    ``variants`` come best quality first. All times are ``clock`` milliseconds.
    """

    def __init__(
        self,
        variants: Mapping[str, Variant],
        send: Send,
        *,
        replicas: int,
        max_batch: int,
        max_waiting: int,
        clock: Callable[[], float] = lambda: time.monotonic() * 1_000.0,
        on_batch: Callable[[str, int, float], None] = lambda variant, rows, ms: None,
    ) -> None:
        self._lanes: Lanes[_Waiting] = Lanes(
            variants, replicas=replicas, max_batch=max_batch, max_waiting=max_waiting
        )
        self._send, self._clock, self._on_batch = send, clock, on_batch
        self._max_batch, self._max_waiting = max_batch, max_waiting
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._context = contextvars.Context()

    def load(self, deadline_ms: float = float("inf"), rows: int = 0) -> OnlineLoad:
        """The online side as `decide` weighs it, now, for a request of ``rows`` with this deadline."""
        return self._lanes.load(self._clock(), deadline_ms, rows)

    def resize(self, replicas: int) -> None:
        """So many replicas live now; predictions and what is in flight follow."""
        self._lanes.resize(replicas)
        if not self._closed:
            self._pump()

    def stale_variant(self) -> str | None:
        """The variant that a probe should run now, if any; see `Lanes.stale_variant`."""
        return self._lanes.stale_variant(self._clock())

    async def run(
        self,
        variant: str,
        inputs: Tensors,
        deadline_ms: float,
        *,
        droppable: bool = True,
        predicted_ms: float = 0.0,
    ) -> OnlineAnswer:
        """The answer for one request of one row or more; longer ones are split and joined.

        ``droppable=False`` runs it even when its deadline is hopeless. ``predicted_ms`` is what was
        promised for it, so that the promises to come can be corrected by its truth.
        Cancelling the call drops the request before it costs work, if it has not started.
        Raises `DispatchError`.
        """
        if self._closed:
            raise ReplicaFailed("the router is shutting down")
        rows = rows_of(inputs)
        sizes = [min(self._max_batch, rows - at) for at in range(0, rows, self._max_batch)]
        if not self._lanes.room_for(len(sizes)):
            raise HeapFull(
                f"{self._lanes.waiting} requests wait, the policy's max_waiting is {self._max_waiting}"
            )
        now = self._clock()
        parts = [inputs] if len(sizes) == 1 else split(inputs, sizes)
        items = [
            self._put(
                variant,
                _Waiting(part, size, deadline_ms, now, droppable, predicted_ms if len(sizes) == 1 else 0.0),
            )
            for part, size in zip(parts, sizes, strict=True)
        ]
        try:
            if len(items) == 1:
                return await items[0].future
            answers = await asyncio.gather(*(item.future for item in items))
        except BaseException as error:
            for item in items:
                item.future.cancel()
                self._lanes.forget(variant, item)
            if isinstance(error, BadRows) and len(items) > 1:
                raise self._in_part(error, items) from None
            raise
        return OnlineAnswer(
            concat([a.outputs for a in answers]),
            variant,
            max(a.queued_ms for a in answers),
            sum(a.run_ms for a in answers),
            max(a.batch_rows for a in answers),
        )

    def _in_part(self, error: BadRows, items: list[_Waiting]) -> BadRows:
        """The error of one part, said of the whole request."""
        ended = (not item.future.cancelled() and item.future.exception() is error for item in items)
        first = self._max_batch * next(place for place, its in enumerate(ended) if its)
        return BadRows(f"in the part that begins with row {first}: {error}")

    def pass_over(self, variant: str) -> None:
        """A lesser variant was chosen because the work ahead left this one no time."""
        self._lanes.pass_over(variant, self._clock())

    def _put(self, variant: str, item: _Waiting) -> _Waiting:
        if self._lanes.add(variant, item):
            self._pump()
        return item

    def _pump(self) -> None:
        """Do what the lanes say, until there is nothing to do before something lands or a timer rings."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while True:
            now = self._clock()
            step = self._lanes.step(now)
            for item in step.hopeless:
                slack = item.deadline_ms - now
                when = f"{-slack:.3g} ms ago" if slack < 0 else f"in {slack:.3g} ms"
                item.future.set_exception(DeadlineHopeless(f"its deadline was {when} when its turn came"))
            if step.start is None:
                break
            # Not in the context of whichever request came last: Serve would cancel the batch with it.
            task = asyncio.get_running_loop().create_task(self._deliver(step.start), context=self._context)
            self._tasks.add(task)
            task.add_done_callback(partial(self._landed, step.start))
        if step.wake_ms is not None:
            delay_s = max(0.0, step.wake_ms - now) / 1_000.0
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._pump)

    async def _deliver(self, start: Start[_Waiting]) -> None:
        """Run one batch, once more if its replica fails, and settle each caller by itself."""
        batch, sent = start.items, self._clock()
        try:
            rows = [item.rows for item in batch]
            message = pack(concat([item.inputs for item in batch]), {"rows": rows})
            outputs, told = unpack(await self._call(start, message))
            run_ms, wait_ms = float(told["run_ms"]), float(told["wait_ms"])
            bad = {int(place): str(reason) for place, reason in told.get("bad", ())}
            if bad:
                rows = [count for place, count in enumerate(rows) if place not in bad]
            parts = split(outputs, rows)
        except Exception as error:  # whatever it is, no caller may be left waiting
            self._fail(batch, error if isinstance(error, DispatchError) else ReplicaFailed(str(error)))
            return
        if bad:
            for place, reason in bad.items():
                self._fail([batch[place]], BadRows(reason))
            batch = [item for place, item in enumerate(batch) if place not in bad]
        else:  # how long it took to find the rows at fault says nothing of the batches to come
            self._lanes.landed(start, self._clock(), run_ms, wait_ms)
        for item, part in zip(batch, parts, strict=True):
            if not item.future.done():
                answer = OnlineAnswer(part, start.variant, sent - item.arrived_ms, run_ms, start.rows)
                item.future.set_result(answer)
        self._on_batch(start.variant, start.rows, run_ms)

    async def _call(self, start: Start[_Waiting], message: bytes) -> bytes:
        """The reply, by a second try where the first fails and one of the batch may still be in time."""
        name, bound = start.variant, start.bound_ms
        for attempt in (1, 2):
            try:
                async with asyncio.timeout((_STUCK_MS + _STUCK_FACTOR * bound) / 1_000.0):
                    return await self._send(name, message)
            except (Exception, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
                if attempt == 2 or not self._lanes.may_resend(start, self._clock()):
                    raise ReplicaFailed(f"variant {name!r} could not run the batch: {reason}") from error
        raise AssertionError("unreachable")

    @staticmethod
    def _fail(batch: list[_Waiting], error: DispatchError) -> None:
        for item in batch:
            if not item.future.done():
                item.future.set_exception(error)

    def _landed(self, start: Start[_Waiting], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._lanes.lost(start)
        # A task that was cancelled before its first step, or died of a fault here, has told nobody.
        fault = "the router is shutting down" if task.cancelled() else "a fault in the router, see its log"
        self._fail(start.items, ReplicaFailed(fault))
        if not self._closed:
            self._pump()

    async def close(self) -> None:
        """Cancel what is in flight, fail what waits, and take no more."""
        self._closed = True
        self._fail(self._lanes.empty(), ReplicaFailed("the router is shutting down"))
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
