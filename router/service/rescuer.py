"""Carries out what `router.scheduling.rescue` chooses: one task per model that has both an online side and a
queue.

A rescued job is leased like any other. Its token sees to it that it ends once, whatever becomes of this
process: should it die, the lease runs out and the job is the queue's again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence

from optimizers.tensors import TensorError, TensorSpec, check, pack, unpack
from router.online.dispatcher import DispatchError, OnlineDispatcher
from router.policy import BatchSection, OnlineSection
from router.policy.facts import MeasuredVariant
from router.scheduling.prediction import batch_load
from router.scheduling.rescue import Rescue, RescueRound, Rescues
from router.scheduling.tuning import RESCUE_HEADS, RESCUE_INTERVAL_MS
from router.service.metrics import Recorder
from workers.queue.contract import DeadlineQueue, Done, Failed, Outcome, QueueError, Release

_log = logging.getLogger("ray.serve")


class Rescuer:
    """``waits`` tells cheaply whether the queue may hold work; ``clock`` is the dispatcher's, in ms."""

    def __init__(
        self,
        queue: DeadlineQueue,
        dispatcher: OnlineDispatcher,
        inputs: Sequence[TensorSpec],
        variant: MeasuredVariant,
        online: OnlineSection,
        batch: BatchSection,
        recorder: Recorder,
        waits: Callable[[], bool],
        clock: Callable[[], float] = lambda: time.monotonic() * 1_000.0,
    ) -> None:
        self._queue, self._online, self._inputs, self._variant = queue, dispatcher, tuple(inputs), variant
        self._batch, self._recorder, self._waits, self._clock = batch, recorder, waits, clock
        self._rescues = Rescues(online.rescue.share, online.replicas, online.max_batch)
        self._worker = f"{socket.gethostname()}:{os.getpid()}:rescue"
        self._tasks: set[asyncio.Task[None]] = set()
        self._taking: asyncio.Task[int] | None = None

    def configure(self, online: OnlineSection, batch: BatchSection) -> None:
        """Go on under other settings of the two sides."""
        self._batch = batch
        self._rescues.quota.configure(online.rescue.share, online.replicas, online.max_batch)

    async def run(self) -> None:
        """Look at the queue while anything waits, until cancelled; what was taken is then given back."""
        try:
            while True:
                await asyncio.sleep(RESCUE_INTERVAL_MS / 1_000.0)
                if not self._waits():
                    continue
                try:
                    await self.look()
                except QueueError as error:
                    _log.warning("model %s: nothing can be rescued now: %s", self._queue.model, error)
        finally:
            if self._taking is not None:
                await asyncio.gather(self._taking, return_exceptions=True)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def look(self) -> int:
        """Start what should be rescued now; gives how many jobs that are. Raises `QueueError`."""
        look = self._rescues.begin(self._clock())
        if look is None:
            return 0
        stats = await self._queue.stats()
        workers, max_batch = self._batch.worker_count, self._batch.max_batch
        batch = batch_load(self._variant, workers, max_batch, stats.waiting_rows, stats.rows_per_s)
        if not look.is_due(stats, batch, self._online.load(), self._clock()):
            return 0
        chosen = look.choose(await self._queue.peek(RESCUE_HEADS), batch, self._online.load())
        if not chosen:
            return 0
        # Not cut off by a shutdown: what is leased by then would be leased to nobody.
        self._taking = asyncio.create_task(self._take(look, chosen))
        return await asyncio.shield(self._taking)

    async def _take(self, look: RescueRound, chosen: list[str]) -> int:
        leases = await self._queue.promote(chosen, look.lease_ms, self._worker)
        for lease in leases:
            task = asyncio.create_task(self._rescue(look.leased(lease)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return len(leases)

    async def _rescue(self, rescue: Rescue) -> None:
        lease, promotion, deadline_ms = rescue
        # A job that fails here is given back, not failed: the queue's own runs decide about its attempts.
        outcome: Outcome = Release(lease.id, lease.token)
        how = "returned"
        try:
            inputs, _ = unpack(lease.payload)
            rows = check(inputs, self._inputs)
            if rows != lease.rows:
                raise TensorError(f"the payload has {rows} rows where the job says {lease.rows}")
            answer = await self._online.run(promotion.variant, inputs, deadline_ms, droppable=True)
            outcome = Done(lease.id, lease.token, pack(answer.outputs), answer.variant)
            how = "met" if self._clock() <= deadline_ms else "late"
        except TensorError as error:
            outcome = Failed(lease.id, lease.token, str(error), retry=False)
        except DispatchError as error:
            _log.info("job %s goes back to the queue: %s", lease.id, error)
        finally:
            self._rescues.ended(rescue)
            self._recorder.rescue(self._queue.model, how)
            await self._settle(outcome)

    async def _settle(self, outcome: Outcome) -> None:
        try:
            await self._queue.settle([outcome])
        except QueueError as error:
            _log.warning("job %s could not be settled; its lease will run out: %s", outcome.id, error)
