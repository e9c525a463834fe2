"""The online dispatcher: a bounded deadline heap per model in front of its replicas, one call per batch.

Requests wait here, not in the replicas, so that the batch is formed at the last moment, from the most
urgent that wait. Two batches may be in flight per replica: one runs, the next is already there.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left, insort_right
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter

from optimizers.profile import OnlineFit
from optimizers.tensors import Tensors, concat, pack, rows_of, split, unpack
from router.estimate import OnlineLoad, Variant
from workers.batching import BoundTable, Idle, Run, Wait, next_batch

Send = Callable[[str, bytes], Awaitable[bytes]]

BATCHES_IN_FLIGHT = 2
#: A batch that takes longer than this many times its bound is taken for lost.
_STUCK_FACTOR, _STUCK_MS = 20.0, 5_000.0
_REFIT_EVERY_MS = 250.0
_PROBE_MS, _PROBE_DOUBTFUL_MS = 5_000.0, 250.0


class DispatchError(Exception):
    """Root of what `OnlineDispatcher.run` raises.

    ::

        DispatchError
        |- DeadlineHopeless    the deadline can no longer be met; the request was dropped before it ran
        |- ReplicaFailed       the replica died or failed, and a second try failed or came too late
        |- HeapFull            no room; nothing was queued
    """


class DeadlineHopeless(DispatchError):
    """The deadline passed, or came too close for even the smallest batch, while the request waited."""


class ReplicaFailed(DispatchError):
    """The batch could not be run. The message carries the reason; nothing of it was answered."""


class HeapFull(DispatchError):
    """The heap holds as many requests as the policy allows."""


@dataclass(frozen=True, slots=True)
class OnlineAnswer:
    """One request's outputs, and how it got them. Times in ms; ``batch_rows`` of the largest batch."""

    outputs: Tensors
    variant: str
    queued_ms: float
    run_ms: float
    batch_rows: int


class _Waiting:
    __slots__ = ("arrived_ms", "deadline_ms", "droppable", "future", "inputs", "rows")

    def __init__(
        self, inputs: Tensors, rows: int, deadline_ms: float, arrived_ms: float, droppable: bool
    ) -> None:
        self.inputs, self.rows, self.deadline_ms, self.arrived_ms = inputs, rows, deadline_ms, arrived_ms
        self.droppable = droppable
        self.future: asyncio.Future[OnlineAnswer] = asyncio.get_running_loop().create_future()


_by_deadline = attrgetter("deadline_ms")


class _Lane:
    """What waits for one variant, earliest deadline first, and the variant's live profile."""

    def __init__(self, variant: Variant, max_batch: int) -> None:
        self.variant, self._max_batch = variant, max_batch
        self.waiting: list[_Waiting] = []
        #: Hopeless, and to be run all the same.
        self.late: list[_Waiting] = []
        self.rows = 0
        self.table = BoundTable.of(variant.profile, max_batch)
        self._base, self._fit = variant.profile, OnlineFit(variant.profile)
        self._refit_at_ms = 0.0
        self.learnt_ms = float("-inf")

    def add(self, item: _Waiting) -> None:
        insort_right(self.waiting, item, key=_by_deadline)
        self.rows += item.rows

    def take(self, count: int) -> list[_Waiting]:
        """The first ``count``, without those whose callers have left."""
        items = self.waiting[:count]
        del self.waiting[:count]
        self.rows -= sum(item.rows for item in items)
        return [item for item in items if not item.future.done()]

    def set_aside(self, items: list[_Waiting]) -> None:
        self.late += items
        self.rows += sum(item.rows for item in items)

    def take_late(self) -> list[_Waiting]:
        """One batch of those set aside, longest there first."""
        count = rows = 0
        for item in self.late:
            if count and rows + item.rows > self._max_batch:
                break
            count, rows = count + 1, rows + item.rows
        items = self.late[:count]
        del self.late[:count]
        self.rows -= rows
        return [item for item in items if not item.future.done()]

    def forget(self, item: _Waiting) -> None:
        """Its caller has left: it takes no room and no part in a batch any more."""
        at = bisect_left(self.waiting, item.deadline_ms, key=_by_deadline)
        while at < len(self.waiting) and self.waiting[at].deadline_ms == item.deadline_ms:
            if self.waiting[at] is item:
                del self.waiting[at]
                self.rows -= item.rows
                return
            at += 1
        if item in self.late:
            self.late.remove(item)
            self.rows -= item.rows

    def learn(self, rows: int, ms: float, now_ms: float, hop_ms: float) -> None:
        """Correct the profile by a live batch; the tables, which count the hop, follow now and then."""
        self._fit.add(rows, ms)
        self.learnt_ms = now_ms
        if now_ms >= self._refit_at_ms:
            self._refit_at_ms = now_ms + _REFIT_EVERY_MS
            self.variant = replace(self.variant, profile=self._fit.profile())
            self.table = BoundTable.of(self.variant.profile.scaled(1.0, hop_ms), self._max_batch)

    @property
    def pessimism(self) -> float:
        """How many times slower the live bound for one row is than the measured one."""
        return self.variant.profile.bound_ms(1) / self._base.bound_ms(1)


class _Hop:
    """What a call costs beside the model, ms: its mean, and a bound by the mean deviation (RFC 6298)."""

    def __init__(self) -> None:
        self.mean_ms, self._deviation_ms = 1.0, 0.5

    @property
    def bound_ms(self) -> float:
        return self.mean_ms + 4.0 * self._deviation_ms

    def learn(self, ms: float) -> None:
        # One stall must not shut the door on the requests of the next second.
        ms = min(ms, self.mean_ms + 8.0 * self._deviation_ms)
        self._deviation_ms += 0.05 * (abs(ms - self.mean_ms) - self._deviation_ms)
        self.mean_ms += 0.05 * (ms - self.mean_ms)


class OnlineDispatcher:
    """Deadline-ordered batching for one model.

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
        self._lanes = {name: _Lane(variant, max_batch) for name, variant in variants.items()}
        self._send, self._clock, self._on_batch = send, clock, on_batch
        self._replicas, self._max_batch, self._max_waiting = replicas, max_batch, max_waiting
        self._slots = replicas * BATCHES_IN_FLIGHT
        self._in_flight: dict[asyncio.Task[None], float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._hop = _Hop()
        self._ran_late = self._closed = False

    def load(self) -> OnlineLoad:
        """The online side as `decide` weighs it, now."""
        now = self._clock()
        busy = sum(max(0.0, end - now) for end in self._in_flight.values()) / self._replicas
        lanes = self._lanes.values()
        return OnlineLoad(
            variants={lane.variant.name: lane.variant for lane in lanes},
            replicas=self._replicas,
            busy_ms=busy,
            waiting_ms=sum(lane.table.predict_ms(lane.rows) for lane in lanes if lane.rows),
            overhead_ms=self._hop.bound_ms,
            full=self._waiting >= self._max_waiting,
        )

    def stale_variant(self) -> str | None:
        """The variant that a probe should run now, if any: its estimate may be wrong for want of news.

        Estimates are corrected by what runs. Where they have become so bad that everything is refused,
        nothing runs, and only a probe can tell that the trouble is over. Busy dispatchers need none.
        """
        if self._in_flight or self._waiting:
            return None
        now = self._clock()
        lane = min(self._lanes.values(), key=lambda x: x.learnt_ms)
        doubtful = max(x.pessimism for x in self._lanes.values()) > 2.0 or self._hop.bound_ms > 5.0
        due = _PROBE_DOUBTFUL_MS if doubtful else _PROBE_MS
        return lane.variant.name if now - lane.learnt_ms >= due else None

    async def run(
        self, variant: str, inputs: Tensors, deadline_ms: float, *, droppable: bool = True
    ) -> OnlineAnswer:
        """The answer for one request of one row or more; longer ones are split and joined.

        ``droppable=False`` runs it even when its deadline is hopeless. Cancelling the call drops the
        request before it costs work, if it has not started. Raises `DispatchError`.
        """
        if self._closed:
            raise ReplicaFailed("the router is shutting down")
        rows, lane = rows_of(inputs), self._lanes[variant]
        sizes = [min(self._max_batch, rows - at) for at in range(0, rows, self._max_batch)]
        if self._waiting + len(sizes) > self._max_waiting:
            raise HeapFull(f"{self._waiting} requests wait, the policy's max_waiting is {self._max_waiting}")
        parts = [inputs] if len(sizes) == 1 else split(inputs, sizes)
        items = [
            self._put(lane, part, size, deadline_ms, droppable)
            for part, size in zip(parts, sizes, strict=True)
        ]
        try:
            if len(items) == 1:
                return await items[0].future
            answers = await asyncio.gather(*(item.future for item in items))
        except BaseException:
            for item in items:
                item.future.cancel()
                lane.forget(item)
            raise
        return OnlineAnswer(
            concat([a.outputs for a in answers]),
            variant,
            max(a.queued_ms for a in answers),
            sum(a.run_ms for a in answers),
            max(a.batch_rows for a in answers),
        )

    def _put(self, lane: _Lane, inputs: Tensors, rows: int, deadline_ms: float, droppable: bool) -> _Waiting:
        item = _Waiting(inputs, rows, deadline_ms, self._clock(), droppable)
        lane.add(item)
        self._pump()
        return item

    @property
    def _waiting(self) -> int:
        return sum(len(lane.waiting) + len(lane.late) for lane in self._lanes.values())

    def _pump(self) -> None:
        """Fill the free slots with the most urgent batches; come back when `next_batch` says so."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while len(self._in_flight) < self._slots:
            now = self._clock()
            live = [lane for lane in self._lanes.values() if lane.waiting]
            lane = min(live, key=lambda x: x.waiting[0].deadline_ms) if live else None
            plan = self._plan(lane, now) if lane else Idle(0)
            late = next((x for x in self._lanes.values() if x.late), None)
            if late and not (self._ran_late and lane):
                # In turns: late work must not make the rest late, nor wait for ever behind it.
                self._ran_late = True
                self._start(late, late.take_late(), now)
            elif lane and isinstance(plan, Run):
                self._ran_late = False
                self._start(lane, lane.take(plan.count), now)
            elif isinstance(plan, Wait):
                delay_s = max(0.0, plan.until_ms - now) / 1_000.0
                self._timer = asyncio.get_running_loop().call_later(delay_s, self._pump)
                return
            elif not lane:
                return

    def _plan(self, lane: _Lane, now: float) -> Run | Wait | Idle:
        """What the lane should do now; those of its head that are hopeless are out of it then."""
        plan = next_batch(
            lane.waiting,
            lane.table,
            now,
            busy_until_ms=self._busy_until(),
            lead_ms=self._hop.mean_ms / 2.0,
        )
        lane.set_aside(self._drop(lane.take(plan.dropped), now))
        return plan

    def _busy_until(self) -> float:
        """When a replica is predicted to be free of what is in flight; 0 where one is idle."""
        behind = len(self._in_flight) - self._replicas
        return sorted(self._in_flight.values())[behind] if behind >= 0 else 0.0

    @staticmethod
    def _drop(items: list[_Waiting], now: float) -> list[_Waiting]:
        """Tell the callers of hopeless requests; give back those that are to be run all the same."""
        for item in items:
            if item.droppable:
                slack = item.deadline_ms - now
                when = f"{-slack:.3g} ms ago" if slack < 0 else f"in {slack:.3g} ms"
                item.future.set_exception(DeadlineHopeless(f"its deadline was {when} when its turn came"))
        return [item for item in items if not item.droppable]

    def _start(self, lane: _Lane, batch: list[_Waiting], now: float) -> None:
        if not batch:  # all of its callers have left
            return
        rows = sum(item.rows for item in batch)
        starts = max(now + self._hop.mean_ms / 2.0, self._busy_until())
        task = asyncio.get_running_loop().create_task(self._deliver(lane, batch, rows))
        self._in_flight[task] = starts + lane.variant.profile.predict_ms(rows)
        task.add_done_callback(partial(self._landed, batch))

    async def _deliver(self, lane: _Lane, batch: list[_Waiting], rows: int) -> None:
        """Run one batch, once more if its replica fails, and settle each caller by itself."""
        name, sent = lane.variant.name, self._clock()
        try:
            message = pack(concat([item.inputs for item in batch]))
            reply = await self._call(lane, name, message, rows, batch[-1].deadline_ms)
            outputs, timing = unpack(reply)
            parts = split(outputs, [item.rows for item in batch])
            run_ms, wait_ms = float(timing["run_ms"]), float(timing["wait_ms"])
        except Exception as error:  # whatever it is, no caller may be left waiting
            self._fail(batch, error if isinstance(error, DispatchError) else ReplicaFailed(str(error)))
            return
        for item, part in zip(batch, parts, strict=True):
            if not item.future.done():
                item.future.set_result(OnlineAnswer(part, name, sent - item.arrived_ms, run_ms, rows))
        now = self._clock()
        self._hop.learn(max(0.0, now - sent - wait_ms - run_ms))
        lane.learn(rows, run_ms, now, self._hop.mean_ms)
        self._on_batch(name, rows, run_ms)

    async def _call(self, lane: _Lane, name: str, message: bytes, rows: int, deadline_ms: float) -> bytes:
        """The reply, by a second try where the first fails and one of the batch may still be in time."""
        bound = lane.table.bound_ms(rows)
        for attempt in (1, 2):
            try:
                async with asyncio.timeout((_STUCK_MS + _STUCK_FACTOR * bound) / 1_000.0):
                    return await self._send(name, message)
            except (Exception, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
                if attempt == 2 or self._clock() + bound > deadline_ms:
                    raise ReplicaFailed(f"variant {name!r} could not run the batch: {reason}") from error
        raise AssertionError("unreachable")

    @staticmethod
    def _fail(batch: list[_Waiting], error: DispatchError) -> None:
        for item in batch:
            if not item.future.done():
                item.future.set_exception(error)

    def _landed(self, batch: list[_Waiting], task: asyncio.Task[None]) -> None:
        self._in_flight.pop(task, None)
        # A task that was cancelled before its first step, or died of a fault here, has told nobody.
        fault = "the router is shutting down" if task.cancelled() else "a fault in the router, see its log"
        self._fail(batch, ReplicaFailed(fault))
        if not self._closed:
            self._pump()

    async def close(self) -> None:
        """Cancel what is in flight, fail what waits, and take no more."""
        self._closed = True
        for lane in self._lanes.values():
            lane.set_aside(lane.take(len(lane.waiting)))
            while lane.late:
                self._fail(lane.take_late(), ReplicaFailed("the router is shutting down"))
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._in_flight)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
