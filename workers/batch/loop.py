"""The batch worker's loop: claim, form batches, run, settle each job by itself, prefetch meanwhile.

Neither Ray nor Redis is needed: a :class:`workers.queue.contract.DeadlineQueue` and a
:class:`workers.execution.batch_model.BatchModel` are handed in, so that tests drive it with any of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from optimizers.profile import OnlineFit
from optimizers.tensors import RowShapes, TensorError, Tensors, pack, row_shapes, unpack
from workers.batch.failure_log import FailureLog
from workers.batch.settings import LoopSettings, Meter
from workers.batching import LEAST_SHARE, BoundTable, plan_batch
from workers.execution.batch_model import BatchModel, VariantUnavailable, WatchedModel
from workers.execution.faults import ModelFault, describe
from workers.execution.model_thread import ModelHangs, ModelThread, run_jobs
from workers.queue.contract import (
    DeadlineQueue,
    Done,
    Failed,
    Lost,
    Missed,
    Outcome,
    QueueClosed,
    QueueError,
    QueueUnavailable,
    Release,
)
from workers.queue.job import JobDecodeError, Lease

logger = logging.getLogger("ray.serve")

#: A variant's table is computed again from live batches after so many of them.
REFIT_BATCHES = 32
#: After a claim that failed; doubled each time.
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0


@dataclass(slots=True)
class _Batch:
    variant: str
    leases: list[Lease]
    inputs: list[Tensors]


class _Variant:
    """A loaded variant: its time by rows, corrected by the batches that it runs."""

    def __init__(self, fit: OnlineFit, table: BoundTable) -> None:
        self.table, self.least_rows = table, table.efficient(LEAST_SHARE)
        self._fit = fit

    def note_run(self, rows: int, ms: float) -> None:
        if rows > self.table.max_rows:
            return  # it ran in pieces: no sample of any batch size
        self._fit.add(rows, ms)
        if self._fit.samples % REFIT_BATCHES == 0:
            self.table = BoundTable.of(self._fit.profile(), self.table.max_rows)
            self.least_rows = self.table.efficient(LEAST_SHARE)


class WorkerLoop:
    """One worker's loop. ``run`` returns after ``stop``; it raises only when it cannot go on."""

    def __init__(
        self,
        queue: DeadlineQueue,
        model: BatchModel,
        variant: str,
        worker: str,
        settings: LoopSettings | None = None,
        *,
        sched_idle: bool = True,
    ) -> None:
        self.meter = Meter()
        self._queue = queue
        self._variant = variant
        self._worker = worker
        self._settings = settings or LoopSettings()
        self._thread = ModelThread(f"{queue.model}-batch", sched_idle=sched_idle)
        self._model = WatchedModel(model, self._thread.watch, self._settings.limit, self._settings.load_limit)
        #: Why the model counts as hung, once it does; its thread may then never end.
        self.hung_reason: str | None = None
        self._variants: dict[str, _Variant] = {}
        self._waiting: list[Lease] = []
        #: Ids of waiting jobs that the queue handed out alone because they lost leases before.
        self._suspects: set[str] = set()
        self._leased: dict[str, Lease] = {}
        self._running: list[Lease] = []
        self._loading: str | None = None
        self._hung_leases: list[Lease] = []
        self._failed_claims = FailureLog(f"batch worker {worker} cannot claim")
        self._clock_offset_ms = 0.0
        self._stopping = asyncio.Event()
        self._settling: asyncio.Task[None] | None = None
        self._claiming: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[bool] | None = None

    async def run(self) -> None:
        """Load the variant, then work until :meth:`stop`. At the end, jobs that were not started are released
        at once and those that were running are settled.

        Raises :class:`ModelFault` or :class:`ModelHangs` where the model cannot go on.
        """
        bodies = (self._work(), self._renew_leases(), self._reap(), self._watch_model())
        tasks = [asyncio.create_task(body) for body in bodies]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._shut_down()

    async def stop(self) -> None:
        """Ask :meth:`run` to end after the batch that is running."""
        self._stopping.set()

    async def _work(self) -> None:
        await self._load(self._variant)
        while not self._stopping.is_set():
            batch = await self._next_batch()
            if batch is None:
                await self._wait_until_needed()
            else:
                await self._run_batch(batch)

    async def _watch_model(self) -> None:
        """Raises :class:`ModelHangs` once the model takes longer than the size of its work explains."""
        while True:
            await asyncio.sleep(self._settings.watch_s)
            self.hung_reason = self._thread.watch.look()
            if self.hung_reason:
                loading = [x for x in self._waiting if self._loading == (x.variant or self._variant)]
                self._hung_leases = [*self._running, *loading]
                logger.error("batch worker %s gives up: %s", self._worker, self.hung_reason)
                raise ModelHangs(self.hung_reason)

    async def _next_batch(self) -> _Batch | None:
        """The next batch that can run now, claiming first if nothing is at hand."""
        if not self._waiting:
            await self._claim(self._variants[self._variant].table.max_rows)
        while self._waiting and not self._stopping.is_set():
            name = self._waiting[0].variant or self._variant
            same_variant = [x for x in self._waiting if (x.variant or self._variant) == name]
            try:
                variant = await self._load(name)
            except VariantUnavailable as error:
                reason = describe(error)
                await self._settle_waiting([Failed(x.id, x.token, reason, retry=False) for x in same_variant])
                continue
            too_late, chosen = plan_batch(
                same_variant, variant.table, self._now_ms(), variant.least_rows, form=self._form
            )
            await self._settle_missed(too_late, name)
            if chosen:
                batch = await self._read_inputs(name, chosen)
                if batch.leases:
                    return batch
        return None

    def _form(self, lease: Lease) -> tuple[RowShapes, str]:
        """Equal for jobs that can run as one batch: rows of the same shapes, and no suspect among them."""
        return row_shapes(lease.payload), lease.id if lease.id in self._suspects else ""

    async def _run_batch(self, batch: _Batch) -> None:
        """Run on the model's thread; meanwhile the last batch is settled and the next one claimed."""
        variant = self._variants[batch.variant]
        rows = sum(x.rows for x in batch.leases)
        started = time.monotonic()
        prefetch = asyncio.create_task(self._prefetch())
        self._running = batch.leases
        try:
            answers = await self._thread.call(
                run_jobs, self._model, batch.variant, variant.table.max_rows, batch.inputs
            )
        except ModelFault as fault:
            # As if the worker had died on them: counted, and claimed alone from now on.
            await self._settle([Lost(x.id, x.token, describe(fault)) for x in batch.leases])
            raise
        finally:
            self._running = []
            prefetch.cancel()
            await asyncio.gather(prefetch, return_exceptions=True)
        elapsed_ms = (time.monotonic() - started) * 1e3
        self.meter.batches.append((batch.variant, rows, elapsed_ms))
        if not any(isinstance(a, Exception) for a in answers):
            variant.note_run(rows, elapsed_ms)
        await self._finish_settling()
        self._settling = asyncio.create_task(self._settle_answers(batch, answers))

    async def _prefetch(self) -> None:
        """Fill up to one batch while the model runs; sleep when there is no more.

        Nothing is claimed behind a suspect: it would wait until the hang is noticed.
        """
        if any(x.id in self._suspects for x in self._running):
            return
        target = self._variants[self._variant].table.max_rows
        while not self._stopping.is_set():
            missing = target - sum(x.rows for x in self._waiting)
            if missing <= 0:
                return
            before = len(self._waiting)
            await self._claim(missing)
            if len(self._waiting) == before and not await self._watch_for_work():
                return

    async def _claim(self, rows: int) -> None:
        """One claim at a time. It goes on when its caller is cancelled: otherwise the jobs that it leases
        would be lost until the lease runs out."""
        if self._claiming is None or self._claiming.done():
            self._claiming = asyncio.create_task(self._claim_now(rows))
        await asyncio.shield(self._claiming)

    async def _claim_now(self, rows: int) -> None:
        try:
            leases = await self._queue.claim(rows, self._settings.lease_ms, self._worker, max_rows=rows)
        except QueueClosed:
            raise
        except (QueueError, JobDecodeError) as error:
            self._failed_claims.add(error)
            await self._pause(self._failed_claims.pause_s(_FIRST_PAUSE_S, _LONGEST_PAUSE_S))
            return
        self._failed_claims.clear()
        if leases:
            server_ms = leases[0].lease_until_ms - self._settings.lease_ms
            self._clock_offset_ms = server_ms - time.monotonic() * 1e3
            self._leased.update((x.id, x) for x in leases)
            self._waiting = sorted([*self._waiting, *leases], key=lambda x: x.deadline_ms)
            if len(leases) == 1 and leases[0].lost:
                self._suspects &= {x.id for x in self._waiting}
                self._suspects.add(leases[0].id)

    async def _watch_for_work(self) -> bool:
        """One watch at a time, kept over cancelled callers: cutting it off would cost a connection."""
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._queue.wait_for_work(self._settings.idle_s))
        try:
            return await asyncio.shield(self._watching)
        except QueueUnavailable as error:
            logger.warning("batch worker %s cannot reach the queue: %s", self._worker, error)
            await self._pause(0.5)
            return False

    async def _pause(self, seconds: float) -> None:
        """Until then, or until :meth:`stop`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _read_inputs(self, variant: str, leases: Sequence[Lease]) -> _Batch:
        """Read and check the inputs; a job that is not what the model takes fails alone."""
        batch = _Batch(variant, [], [])
        bad: list[Outcome] = []
        chosen = {x.id for x in leases}
        self._waiting = [x for x in self._waiting if x.id not in chosen]
        for lease in leases:
            try:
                inputs, _ = unpack(lease.payload)
                rows = self._model.check(variant, inputs)
                if rows != lease.rows:
                    raise TensorError(f"the payload has {rows} rows where the job says {lease.rows}")
            except TensorError as error:
                bad.append(Failed(lease.id, lease.token, describe(error), retry=False))
                self.meter.rows[variant, "failed"] += lease.rows
                continue
            batch.leases.append(lease)
            batch.inputs.append(inputs)
        if bad:
            await self._settle(bad)
        return batch

    async def _settle_answers(self, batch: _Batch, answers: Sequence[Tensors | Exception]) -> None:
        outcomes: list[Outcome] = []
        for lease, answer in zip(batch.leases, answers, strict=True):
            if isinstance(answer, Exception):
                outcomes.append(Failed(lease.id, lease.token, describe(answer), retry=False))
                self.meter.rows[batch.variant, "failed"] += lease.rows
            else:
                outcomes.append(Done(lease.id, lease.token, pack(answer), batch.variant))
                self.meter.rows[batch.variant, "done"] += lease.rows
        await self._settle(outcomes)

    async def _settle(self, outcomes: Sequence[Outcome]) -> None:
        """Settled jobs are no longer held. A queue that stays away costs the lease, never the job."""
        try:
            won = await self._queue.settle(outcomes)
            self.meter.stale += won.count(False)
        except QueueUnavailable as error:
            logger.warning("batch worker %s could not settle %d jobs: %s", self._worker, len(outcomes), error)
        for outcome in outcomes:
            self._leased.pop(outcome.id, None)

    async def _settle_waiting(self, outcomes: Sequence[Outcome]) -> None:
        settled = {outcome.id for outcome in outcomes}
        self._waiting = [x for x in self._waiting if x.id not in settled]
        await self._settle(outcomes)

    async def _settle_missed(self, leases: Sequence[Lease], variant: str) -> None:
        """Report jobs that cannot meet their deadlines as missed now: they would delay those behind them."""
        if leases:
            reason = "it could not be done by its deadline any more"
            await self._settle_waiting([Missed(x.id, x.token, reason) for x in leases])
            self.meter.rows[variant, "expired"] += sum(x.rows for x in leases)

    async def _wait_until_needed(self) -> None:
        await self._finish_settling()
        if self._stopping.is_set() or self._waiting:
            return
        tasks = [asyncio.create_task(self._stopping.wait()), asyncio.create_task(self._watch_for_work())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _renew_leases(self) -> None:
        """Renew at a third of the lease; jobs whose lease was lost are not started."""
        while True:
            await asyncio.sleep(self._settings.lease_ms / 3000)
            refs = [x.ref for x in self._leased.values()]
            with contextlib.suppress(QueueUnavailable):
                kept = await self._queue.extend(refs, self._settings.lease_ms)
                lost = {ref.id for ref, is_kept in zip(refs, kept, strict=True) if not is_kept}
                lost = {id for id in lost if id in self._leased and self._leased[id].ref in refs}
                self._waiting = [x for x in self._waiting if x.id not in lost]
                for id in lost:
                    self._leased.pop(id, None)

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(self._settings.reap_s)
            with contextlib.suppress(QueueUnavailable):
                await self._queue.reap()

    async def _shut_down(self) -> None:
        """Settle the jobs that ran, release those that did not start, and end the thread."""
        self._stopping.set()
        try:
            if self.hung_reason:
                # It is not known which of them is at fault, or whether any is.
                await self._settle_waiting([Lost(x.id, x.token, self.hung_reason) for x in self._hung_leases])
            await self._finish_settling()
            if self._watching is not None:
                self._watching.cancel()
                await asyncio.gather(self._watching, return_exceptions=True)
            if self._claiming is not None:
                await asyncio.gather(self._claiming, return_exceptions=True)
            if self._waiting:
                await self._settle([Release(x.id, x.token) for x in self._waiting])
                self._waiting = []
        except QueueError as error:
            logger.warning("batch worker %s left without giving its work back: %s", self._worker, error)
        finally:
            if not self.hung_reason:
                with contextlib.suppress(RuntimeError):
                    await self._thread.call(self._model.close)
            self._thread.close()

    async def _finish_settling(self) -> None:
        if self._settling is not None:
            settling, self._settling = self._settling, None
            await settling

    async def _load(self, name: str) -> _Variant:
        if name not in self._variants:
            self._loading = name
            try:
                profile = await self._thread.call(self._model.load, name)
            finally:
                self._loading = None
            table = BoundTable.of(profile, self._settings.max_rows)
            self._variants[name] = _Variant(OnlineFit(profile), table)
        return self._variants[name]

    def _now_ms(self) -> float:
        """The queue's clock as last read, carried on by the local monotonic one."""
        return time.monotonic() * 1e3 + self._clock_offset_ms
