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

from optimizers.tensors import TensorError, Tensors, TensorSpec, concat, pack, rows_of, split, unpack
from router.online.errors import BadRows, DeadlineHopeless, DispatchError, HeapFull, ReplicaFailed
from router.online.waiting import Away, OnlineAnswer, WaitingRequest
from router.policy.facts import MeasuredVariant
from router.scheduling.prediction import OnlineLoad
from router.scheduling.row_cost import RowCost
from router.scheduling.scheduler import TRIES, Scheduler
from router.scheduling.variant_queue import BatchDispatch

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
Send = Callable[[str, bytes, str], Awaitable[bytes]]

#: A batch that takes longer than this many times its bound is taken for lost. For each request in it so many
#: bounds more: where it fails, the replica may have to run them one by one, behind other batches.
_STUCK_FACTOR, _STUCK_EACH, _STUCK_MS = 20.0, 3.0, 5_000.0


class OnlineDispatcher:
    """Deadline-ordered batching for one model: `router.scheduling.scheduler` decides, this sends and settles.

    ``send`` runs one packed batch on a replica; ``replicas`` is how many there are until `set_replicas` names
    them. ``variants`` come best quality first; of what is accepted the share ``in_time`` is to be answered in
    time. All times are ``clock`` milliseconds.
    """

    def __init__(
        self,
        variants: Mapping[str, MeasuredVariant],
        send: Send,
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
        """Do what the scheduler says, until it has nothing to do before a batch ends or a timer fires."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while True:
            now = self._clock()
            step = self._scheduler.step(now)
            for item in step.hopeless:
                slack = item.deadline_ms - now
                when = f"{-slack:.3g} ms ago" if slack < 0 else f"in {slack:.3g} ms"
                item.future.set_exception(DeadlineHopeless(f"its deadline was {when} when its turn came"))
            if step.start is None:
                break
            self._begin(self._deliver(step.start), step.start)
        if step.wake_ms is not None:
            delay_s = max(0.0, step.wake_ms - now) / 1_000.0
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._pump)

    def _begin(self, delivery: Coroutine[Any, Any, None], start: BatchDispatch[WaitingRequest]) -> None:
        # Not in the context of whichever request came last: Serve would cancel the batch with it.
        task = asyncio.get_running_loop().create_task(delivery, context=self._context)
        self._tasks.add(task)
        task.add_done_callback(partial(self._delivered, start))

    async def _deliver(self, start: BatchDispatch[WaitingRequest]) -> None:
        """Run one batch, once more if its replica fails, and settle each caller by itself."""
        now = self._clock()
        items, message = self._packed(start.items)
        if not items:
            return
        if len(items) < len(start.items):
            start = replace(start, items=items)
        away = Away(items, message)
        silent_s = (start.silent_ms - now) / 1_000.0
        away.timer = asyncio.get_running_loop().call_later(silent_s, self._miss, start, away)
        await self._attempt(start, away)

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

    async def _attempt(self, start: BatchDispatch[WaitingRequest], away: Away) -> None:
        """One call, and what follows from its answer, its failure or its taking too long."""
        sent = self._clock()
        try:
            async with asyncio.timeout(_stuck_s(start)):
                reply = await self._send(start.variant, away.message, start.replica)
            away.open -= 1
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            away.open -= 1
            if task is not None and task.cancelling():
                raise
            await self._retry(start, away, error)
            return
        finally:
            if not away.open and away.timer is not None:
                away.timer.cancel()
        try:
            run_ms = self._settle(start, away, reply, sent)
        except Exception as error:  # whatever it is, no caller may be left waiting
            self._fail(away.items, ReplicaFailed(str(error)))
        else:
            self._on_batch(start.variant, sum(item.own_rows for item in start.items), run_ms)

    async def _retry(self, start: BatchDispatch[WaitingRequest], away: Away, error: BaseException) -> None:
        """A try has failed: another one where nothing else may still be answered and it may be in time."""
        if away.open or away.told:
            self._scheduler.abandon(start)
            return
        again = self._scheduler.retry(start, self._clock(), failed=True) if away.tries < TRIES else None
        if again is None:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            what = f"variant {start.variant!r} could not run the batch: {reason}"
            self._fail(away.items, ReplicaFailed(what))
            return
        away.open, away.tries = 1, away.tries + 1
        try:
            await self._attempt(again, away)
        finally:
            self._scheduler.abandon(again)

    def _settle(self, start: BatchDispatch[WaitingRequest], away: Away, reply: bytes, sent: float) -> float:
        """Give each caller his rows of the answer, or the reason why there are none; how long it ran, ms."""
        batch = away.items
        outputs, meta = unpack(reply)
        run_ms, wait_ms = float(meta["run_ms"]), float(meta["wait_ms"])
        ran_ms = float(meta["ran_ms"]) if "ran_ms" in meta else None
        if "bad" in meta:
            bad = {int(place): str(reason) for place, reason in meta["bad"]}
            for place, reason in bad.items():
                self._fail([batch[place]], BadRows(reason))
            batch = [item for place, item in enumerate(batch) if place not in bad]
            parts = [unpack(answer)[0] for answer in outputs["answers"]]
            # How long it took to find the rows at fault says nothing of the batches to come.
            self._scheduler.completed_untimed(start, self._clock())
        else:
            parts = split(outputs, [item.own_rows for item in batch])
            self._scheduler.completed(start, self._clock(), run_ms, wait_ms, ran_ms, not away.told)
        rows = sum(item.own_rows for item in start.items)
        for item, part in zip(batch, parts, strict=True):
            if not item.future.done():
                answer = OnlineAnswer(part, start.variant, sent - item.arrived_ms, run_ms, rows)
                item.future.set_result(answer)
        return run_ms

    def _miss(self, start: BatchDispatch[WaitingRequest], away: Away) -> None:
        """The batch is overdue by more than its bound explains: try elsewhere, tell whose time is over."""
        if not away.open or away.told or self._closed:
            return
        now = self._clock()
        again = self._scheduler.retry(start, now, failed=False) if away.tries < TRIES else None
        if again is not None:
            away.open, away.tries = away.open + 1, away.tries + 1
            self._begin(self._attempt(again, away), again)
        next_ms = float("inf")
        for item in away.items:
            if item.future.done() or not item.droppable:
                continue
            if item.deadline_ms <= now:
                what = f"its deadline was {now - item.deadline_ms:.3g} ms ago and its replica is silent"
                item.future.set_exception(DeadlineHopeless(what))
            else:
                next_ms = min(next_ms, item.deadline_ms)
        if next_ms < float("inf"):
            delay_s = max(0.0, next_ms - now) / 1_000.0
            away.timer = asyncio.get_running_loop().call_later(delay_s, self._miss, start, away)
        self._pump()

    @staticmethod
    def _fail(batch: list[WaitingRequest], error: DispatchError) -> None:
        for item in batch:
            if not item.future.done():
                item.future.set_exception(error)

    def _delivered(self, start: BatchDispatch[WaitingRequest], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._scheduler.abandon(start)
        # A task that was cancelled before its first step, or died of a fault here, has told nobody.
        if task.cancelled():
            self._fail(start.items, ReplicaFailed("the router is shutting down"))
        elif (error := task.exception()) is not None:
            self._fail(start.items, ReplicaFailed("a fault in the router, see its log"))
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


def _stuck_s(start: BatchDispatch[WaitingRequest]) -> float:
    """How long an answer is waited for."""
    bounds = _STUCK_FACTOR + _STUCK_EACH * (len(start.items) - 1)
    return (_STUCK_MS + bounds * start.bound_ms) / 1_000.0


def _message(items: Sequence[WaitingRequest]) -> bytes:
    rows = [item.own_rows for item in items]
    return pack(concat([item.inputs for item in items]), {"rows": rows})
