"""The online dispatcher: a bounded deadline heap per model in front of its replicas, one call per batch.

Requests wait here, not in the replicas, so that the batch is formed at the last moment, from the most
urgent that wait. Two batches may be in flight per replica: one runs, the next is already there. A batch
that its replica keeps to itself goes to another one as well, and the first answer counts.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any

from optimizers.tensors import TensorError, Tensors, TensorSpec, concat, pack, rows_of, split
from router.online.errors import BadRows, DeadlineHopeless, DispatchError, HeapFull, ReplicaFailed
from router.online.waiting import BatchReply, OnlineAnswer, SentBatch, WaitingRequest
from router.policy.facts import MeasuredVariant
from router.scheduling.actions import Action, BatchDispatch, Drop, Fail, SendBatch, WakeAt
from router.scheduling.delivery import BatchDelivery, give_up_after_ms
from router.scheduling.prediction import OnlineLoad
from router.scheduling.row_cost import RowCost
from router.scheduling.scheduler import Scheduler

__all__ = [
    "BadRows",
    "DeadlineHopeless",
    "DispatchError",
    "HeapFull",
    "OnlineAnswer",
    "OnlineDispatcher",
    "ReplicaFailed",
]

#: Of a variant's name, a packed batch, and a replica's name (empty: any), the packed answer.
Transport = Callable[[str, bytes, str], Awaitable[bytes]]


class OnlineDispatcher:
    """Deadline-ordered batching for one model: `router.scheduling.scheduler` decides, this sends and settles.

    ``send`` runs one packed batch on a replica; ``replicas`` is how many there are until `set_replicas` names
    them. ``variants`` come best quality first; of what is accepted the share ``in_time`` is to be answered in
    time. All times are ``clock`` milliseconds.
    """

    def __init__(
        self,
        variants: Mapping[str, MeasuredVariant],
        send: Transport,
        *,
        replicas: int,
        max_batch: int,
        max_waiting: int,
        in_time: float = 0.0,
        inputs: Sequence[TensorSpec] = (),
        clock: Callable[[], float] = lambda: time.monotonic() * 1_000.0,
        on_batch: Callable[[str, int, float], None] = lambda variant, rows, ms: None,
    ) -> None:
        #: The inputs of which not every row has the same size.
        self._open = tuple(spec.name for spec in inputs if -1 in spec.shape[1:])
        self._scheduler: Scheduler[WaitingRequest] = Scheduler(
            variants,
            replicas=replicas,
            max_batch=max_batch,
            max_waiting=max_waiting,
            in_time=in_time,
            form=attrgetter("form") if self._open else None,
        )
        self._send, self._clock, self._on_batch = send, clock, on_batch
        self.row_cost = RowCost(inputs, max_batch)
        self._max_batch, self._max_waiting = max_batch, max_waiting
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._context = contextvars.Context()

    def load(self, deadline_ms: float = float("inf"), row_cost: int = 0) -> OnlineLoad:
        """The online side as `decide` sees it, now, for a request of ``row_cost`` with this deadline."""
        return self._scheduler.load(self._clock(), deadline_ms, row_cost)

    @property
    def hop_deviation_ms(self) -> float:
        """The mean deviation of what a call costs beside the model, ms."""
        return self._scheduler.hop.deviation_ms

    def configure(self, max_batch: int, max_waiting: int, in_time: float) -> None:
        """Go on under other settings; what waits and what was learnt stays."""
        self._max_batch, self._max_waiting = max_batch, max_waiting
        self.row_cost.resize(max_batch)
        self._scheduler.configure(max_batch, max_waiting, in_time)
        if not self._closed:
            self._pump()

    def set_replicas(self, names: Collection[str]) -> None:
        """These replicas live now; predictions and what is in flight follow."""
        self._scheduler.set_replicas(names)
        if not self._closed:
            self._pump()

    def stale_variant(self, besides: Collection[str] = ()) -> str | None:
        """The variant that a probe should run now, if any; see `Scheduler.stale_variant`."""
        return self._scheduler.stale_variant(self._clock(), besides)

    async def run(
        self,
        variant: str,
        inputs: Tensors,
        deadline_ms: float,
        *,
        droppable: bool = True,
        predicted_ms: float = 0.0,
        row_cost: int = 0,
    ) -> OnlineAnswer:
        """The answer for one request of one row or more; longer ones are split and joined.

        ``droppable=False`` runs it even when its deadline is hopeless. ``predicted_ms`` is what was
        promised for it, so that the promises to come can be corrected by its truth; ``row_cost`` is what
        ``row_cost`` gave for it, where that was asked already.
        Cancelling the call drops the request before it costs work, if it has not started.
        Raises `DispatchError`.
        """
        if self._closed:
            raise ReplicaFailed("the router is shutting down")
        rows = rows_of(inputs)
        row_cost = row_cost or self.row_cost.of_request(inputs, rows)
        sizes = [min(self._max_batch, rows - at) for at in range(0, rows, self._max_batch)]
        if not self._scheduler.room_for(len(sizes)):
            raise HeapFull(
                f"{self._scheduler.waiting} requests wait, the policy's max_waiting is {self._max_waiting}"
            )
        now, promised = self._clock(), predicted_ms if len(sizes) == 1 else 0.0
        parts = [inputs] if len(sizes) == 1 else split(inputs, sizes)
        form = tuple(inputs[name].shape[1:] for name in self._open)
        items = []
        for part, size in zip(parts, sizes, strict=True):
            cost = self._cost(row_cost, size, rows)
            item = WaitingRequest(part, cost, size, deadline_ms, now, droppable, promised, form)
            items.append(self._put(variant, item))
        try:
            if len(items) == 1:
                return await items[0].future
            answers = await asyncio.gather(*(item.future for item in items))
        except BaseException as error:
            for item in items:
                item.future.cancel()
                self._scheduler.forget(variant, item)
            if isinstance(error, BadRows) and len(items) > 1:
                raise self._in_part(error, items, sizes[0]) from None
            raise
        try:
            outputs = concat([a.outputs for a in answers])
        except TensorError as error:
            raise BadRows(
                f"it was run in parts of {sizes[0]} rows, whose outputs do not fit together: {error}. "
                f"Send at most {sizes[0]} rows in a request"
            ) from None
        return OnlineAnswer(
            outputs,
            variant,
            max(a.queued_ms for a in answers),
            sum(a.run_ms for a in answers),
            max(a.batch_rows for a in answers),
        )

    def _cost(self, row_cost: int, size: int, rows: int) -> int:
        """What ``size`` of the ``rows`` of a request cost, as far as a batch may."""
        return min(self._max_batch, -(-row_cost * size // rows))

    @staticmethod
    def _in_part(error: BadRows, items: list[WaitingRequest], size: int) -> BadRows:
        """The error of one part, said of the whole request."""
        ended = (not item.future.cancelled() and item.future.exception() is error for item in items)
        first = size * next(place for place, its in enumerate(ended) if its)
        return BadRows(f"in the part that begins with row {first}: {error}")

    def note_degraded(self, variant: str) -> None:
        """A lesser variant was chosen because the work ahead left this one no time."""
        self._scheduler.note_degraded(variant, self._clock())

    def _put(self, variant: str, item: WaitingRequest) -> WaitingRequest:
        if self._scheduler.add(variant, item):
            self._pump()
        return item

    def _pump(self) -> None:
        """Do what the scheduler says now, and set the timer for when to ask it again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        for action in self._scheduler.step(now):
            match action:
                case Drop(items):
                    for item in items:
                        slack = item.deadline_ms - now
                        when = f"{-slack:.3g} ms ago" if slack < 0 else f"in {slack:.3g} ms"
                        item.future.set_exception(
                            DeadlineHopeless(f"its deadline was {when} when its turn came")
                        )
                case SendBatch(batch):
                    self._begin(self._deliver(batch), batch)
                case WakeAt(at_ms):
                    self._timer = self._call_at(at_ms, now, self._pump)

    @staticmethod
    def _call_at(at_ms: float, now_ms: float, action: Callable[..., None], *args: Any) -> asyncio.TimerHandle:
        delay_s = max(0.0, at_ms - now_ms) / 1_000.0
        return asyncio.get_running_loop().call_later(delay_s, action, *args)

    def _begin(self, delivery: Coroutine[Any, Any, None], batch: BatchDispatch[WaitingRequest]) -> None:
        # Not in the context of whichever request came last: Serve would cancel the batch with it.
        task = asyncio.get_running_loop().create_task(delivery, context=self._context)
        self._tasks.add(task)
        task.add_done_callback(partial(self._attempt_ended, batch))

    async def _deliver(self, batch: BatchDispatch[WaitingRequest]) -> None:
        """Send one batch as `BatchDelivery` says, and settle each caller by itself."""
        now = self._clock()
        items, message = self._packed(batch.items)
        if not items:
            return
        if len(items) < len(batch.items):
            batch = replace(batch, items=items)
        sent = SentBatch(BatchDelivery(self._scheduler, batch), message)
        sent.timer = self._call_at(batch.silent_ms, now, self._overdue, sent)
        await self._attempt(batch, sent)

    def _packed(self, items: list[WaitingRequest]) -> tuple[list[WaitingRequest], bytes]:
        """The requests as one message. One that cannot be part of it fails, and no other for it."""
        try:
            return items, _message(items)
        except Exception:  # whatever it is, no caller may be left waiting
            good = []
            for item in items:
                try:
                    _message([item])
                    good.append(item)
                except Exception as error:
                    self._fail([item], BadRows(f"the request cannot be sent to the model: {error}"))
        try:
            return good, _message(good) if good else b""
        except Exception as error:
            self._fail(good, ReplicaFailed(str(error)))
            return [], b""

    async def _attempt(self, batch: BatchDispatch[WaitingRequest], sent: SentBatch) -> None:
        """One call, and what follows from its answer, its failure or its taking too long."""
        began_ms, delivery = self._clock(), sent.delivery
        try:
            async with asyncio.timeout(give_up_after_ms(batch) / 1_000.0):
                reply = await self._send(batch.variant, sent.message, batch.replica)
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                delivery.discard(batch)
                raise
            self._carry_out(delivery.failed(batch, self._clock()), sent, error)
        else:
            try:
                answers = BatchReply.read(reply, batch.items)
            except Exception as error:  # whatever it is, no caller may be left waiting
                delivery.discard(batch)
                self._fail(batch.items, ReplicaFailed(str(error)))
            else:
                self._settle(batch, delivery, answers, began_ms)
        finally:
            if not delivery.is_open and sent.timer is not None:
                sent.timer.cancel()

    def _settle(
        self,
        batch: BatchDispatch[WaitingRequest],
        delivery: BatchDelivery[WaitingRequest],
        reply: BatchReply,
        began_ms: float,
    ) -> None:
        """Give each caller the outputs for its rows, or why there are none."""
        # How long it took to find the rows at fault says nothing of the batches to come.
        delivery.answered(batch, self._clock(), None if reply.bad else reply.times)
        run_ms, rows = reply.times.run_ms, sum(item.own_rows for item in batch.items)
        for place, item in enumerate(batch.items):
            if place in reply.bad:
                self._fail([item], BadRows(reply.bad[place]))
            elif not item.future.done():
                queued_ms = began_ms - item.arrived_ms
                outputs = reply.outputs[place]
                item.future.set_result(OnlineAnswer(outputs, batch.variant, queued_ms, run_ms, rows))
        self._on_batch(batch.variant, rows, run_ms)

    def _overdue(self, sent: SentBatch) -> None:
        if not self._closed and not sent.delivery.all_answered:
            self._carry_out(sent.delivery.overdue(self._clock()), sent)
            self._pump()

    def _carry_out(
        self, actions: list[Action[WaitingRequest]], sent: SentBatch, error: BaseException | None = None
    ) -> None:
        """What a batch's delivery asks for; ``error`` is what its last attempt failed with."""
        now = self._clock()
        for action in actions:
            match action:
                case SendBatch(batch):
                    self._begin(self._attempt(batch, sent), batch)
                case Drop(items):
                    for item in items:
                        what = (
                            f"its deadline was {now - item.deadline_ms:.3g} ms ago and its replica is silent"
                        )
                        self._fail([item], DeadlineHopeless(what))
                case Fail(items):
                    lines = str(error).strip().splitlines()
                    reason = lines[-1] if lines else type(error).__name__
                    variant = sent.delivery.variant
                    what = f"variant {variant!r} could not run the batch: {reason}"
                    self._fail(items, ReplicaFailed(what))
                case WakeAt(at_ms):
                    sent.timer = self._call_at(at_ms, now, self._overdue, sent)

    @staticmethod
    def _fail(batch: list[WaitingRequest], error: DispatchError) -> None:
        for item in batch:
            if not item.future.done():
                item.future.set_exception(error)

    def _attempt_ended(self, batch: BatchDispatch[WaitingRequest], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._scheduler.abandon(batch)
        # A task that was cancelled before its first step, or died of a fault here, has answered nobody.
        if task.cancelled():
            self._fail(batch.items, ReplicaFailed("the router is shutting down"))
        elif (error := task.exception()) is not None:
            self._fail(batch.items, ReplicaFailed("a fault in the router, see its log"))
            context = {"message": "a batch could not be delivered", "exception": error, "task": task}
            task.get_loop().call_exception_handler(context)
        if not self._closed:
            self._pump()

    async def close(self) -> None:
        """Cancel what is in flight, fail what waits, and take no more."""
        self._closed = True
        self._fail(self._scheduler.empty(), ReplicaFailed("the router is shutting down"))
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _message(items: Sequence[WaitingRequest]) -> bytes:
    rows = [item.own_rows for item in items]
    return pack(concat([item.inputs for item in items]), {"rows": rows})
