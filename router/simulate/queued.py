"""The batch side of one model in virtual time: the in-memory deadline queue, drained by simulated workers."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import heappop, heappush
from typing import Any, TypeVar

from router.policy import BatchSection
from router.policy.facts import MeasuredVariant
from router.scheduling.admission import Enqueue
from router.scheduling.prediction import BatchLoad, UnknownQueue, batch_load, drain_rows_per_s
from router.scheduling.recent_least import RecentLeast
from router.scheduling.tuning import LEAST_QUEUE_MS, STATS_VALID_MS
from router.simulate.events import Events
from router.simulate.faults import Fault
from router.simulate.requests import Outcome, SimulatedRequest
from router.simulate.timing import Timing
from workers.batch.autoscale import workers_wanted
from workers.batching import LEAST_SHARE, BoundTable, plan_batch
from workers.queue.contract import Accepted, Done, Missed, QueueStats, Release, WaitingJob
from workers.queue.job import JobState, Lease, LeaseRef, NewJob
from workers.queue.memory.queue import MemoryQueue
from workers.queue.settings import QueueSettings

T = TypeVar("T")

_STATS_EVERY_MS = 500.0
#: How long a submit tries to reach a queue at most, where nothing else bounds it. See
#: `workers.queue.redis.queue`.
_PATIENCE_MS = 10_000.0
#: MemoryQueue counts from 1970, and a virtual run from 0: a moment that no clock reads as "never".
_EPOCH_MS = 1_000_000

_OUTCOMES: Mapping[JobState, Outcome] = {JobState.DONE: "answered", JobState.EXPIRED: "expired"}


def now(coroutine: Coroutine[Any, Any, T]) -> T:
    """The value of a coroutine that waits for nothing, as all of `MemoryQueue`'s do but its waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    coroutine.close()
    raise RuntimeError("it would have waited")


@dataclass(slots=True)
class _Worker:
    name: str
    epoch: int = 0
    busy: bool = False
    up_at_ms: float = 0.0
    factor: float = 1.0
    waiting: list[Lease] = field(default_factory=list)


class QueueSide:
    """Keeps what `decide` enqueues until a worker has run it. ``end`` is told once of each request."""

    def __init__(
        self,
        model: str,
        section: BatchSection,
        variants: Mapping[str, MeasuredVariant],
        settings: QueueSettings,
        events: Events,
        timing: Timing,
        draw: random.Random,
        end: Callable[[SimulatedRequest, Outcome], None],
        violated: Callable[[str], None],
    ) -> None:
        self._section, self._variants = section, variants
        self._events, self._timing, self._end, self._violated = events, timing, end, violated
        self._queue = MemoryQueue(model, settings, now_ms=self._queue_clock, rng=draw)
        self._model, self._named = model, 0
        self._workers: list[_Worker] = []
        self._provided_ms = self._counted_at_ms = 0.0
        self._fewer_since_ms: float | None = None
        self._add_workers(section.workers if isinstance(section.workers, int) else section.workers.min, 0.0)
        self._tables: dict[str, BoundTable] = {}
        self._least_rows: dict[str, int] = {}
        self._open: dict[str, SimulatedRequest] = {}
        self._due: list[tuple[float, str]] = []
        self._numbered = 0
        self._away_until_ms = self._stats_at_ms = 0.0
        self._stats: QueueStats = now(self._queue.stats())
        self._least_ms: dict[int, RecentLeast] = defaultdict(partial(RecentLeast, LEAST_QUEUE_MS))
        self.busy_ms = 0.0
        self.batches = 0
        self.batch_rows = 0

    def _queue_clock(self) -> int:
        return _EPOCH_MS + int(self._events.now_ms)

    @property
    def waiting_rows(self) -> int:
        return self._stats.waiting_rows

    @property
    def size(self) -> int:
        """How many workers there are."""
        return len(self._workers)

    @property
    def provided_ms(self) -> float:
        """The workers' time so far, busy or not."""
        return self._provided_ms + len(self._workers) * (self._events.now_ms - self._counted_at_ms)

    def _add_workers(self, count: int, start_ms: float) -> None:
        self._provided_ms, self._counted_at_ms = self.provided_ms, self._events.now_ms
        for _ in range(count):
            worker = _Worker(f"{self._model}-{self._named}", up_at_ms=self._events.now_ms + start_ms)
            self._named += 1
            self._workers.append(worker)
            if start_ms:
                self._events.at(worker.up_at_ms, self._work, worker)

    def _scale(self) -> None:
        """What Serve does with the target of `workers.batch.autoscale`: up at once, down after a while."""
        section, now_ms = self._section, self._events.now_ms
        if isinstance(section.workers, int):
            return
        scale, present = section.workers, sum(worker.up_at_ms <= now_ms for worker in self._workers)
        alone = drain_rows_per_s(self._variants[section.variant], 1, section.max_batch, 0, None)
        wanted = min(scale.max, max(scale.min, workers_wanted(self._stats, alone, present)))
        if wanted >= len(self._workers):
            self._fewer_since_ms = None
            self._add_workers(wanted - len(self._workers), self._timing.costs.restart_ms)
            return
        self._fewer_since_ms = now_ms if self._fewer_since_ms is None else self._fewer_since_ms
        if now_ms - self._fewer_since_ms < scale.idle:
            return
        self._add_workers(0, 0.0)
        idle = [worker for worker in self._workers if not worker.busy and not worker.waiting]
        for worker in idle[: len(self._workers) - wanted]:
            worker.up_at_ms = float("inf")
            self._workers.remove(worker)

    @property
    def open(self) -> bool:
        """Whether any job has not ended."""
        return bool(self._open)

    @property
    def reachable(self) -> bool:
        return self._events.now_ms >= self._away_until_ms

    def look(self) -> QueueStats:
        return now(self._queue.stats())

    def peek(self, count: int) -> list[WaitingJob]:
        return now(self._queue.peek(count))

    def promote(self, ids: list[str], lease_ms: int) -> list[Lease]:
        """Lease these to a router, which runs them online."""
        return now(self._queue.promote(ids, lease_ms, "rescue"))

    def settle(self, outcome: Done | Release, variant: str | None) -> None:
        """A router is done with a job: it ran on ``variant``, or the queue has it back."""
        if not self.reachable:
            self._events.at(self._away_until_ms, self.settle, outcome, variant)
            return
        (won,) = now(self._queue.settle([outcome]))
        asked = self._open.get(outcome.id)
        if won and asked is not None and variant is not None:
            asked.variant, asked.drop = variant, self._variants[variant].quality_drop
        self._close(outcome.id)

    def load(self, router: int) -> BatchLoad | UnknownQueue:
        """As a router knows it, which reads its statistics now and then while the queue can be reached."""
        if self._events.now_ms - self._stats_at_ms > STATS_VALID_MS:
            return UnknownQueue(self._variants[self._section.variant])
        return replace(self.load_of(self._stats), least_ms=self._least_ms[router].value)

    def load_of(self, stats: QueueStats) -> BatchLoad:
        section = self._section
        variant = self._variants[section.variant]
        return batch_load(
            variant, section.worker_count, section.max_batch, stats.waiting_rows, stats.rows_per_s
        )

    def submit(self, asked: SimulatedRequest, decision: Enqueue, give_up: Callable[[], None]) -> None:
        """What the service does with an `Enqueue`; while the queue is away it tries for a while."""
        away_ms = self._away_until_ms - self._events.now_ms
        if away_ms > 0:
            patience_ms = decision.patience_ms
            if patience_ms is None:
                patience_ms = min(asked.request.budget_ms, _PATIENCE_MS)
            if away_ms > patience_ms:
                self._events.at(self._events.now_ms + patience_ms, self._not_taken, give_up)
            else:
                self._events.at(self._away_until_ms, self.submit, asked, decision, give_up)
            return
        self._numbered += 1
        job = NewJob(
            id=str(self._numbered),
            payload=b"",
            rows=asked.rows,
            budget_ms=max(1, int(asked.request.budget_ms)),
            tenant=asked.request.tenant,
            variant=decision.variant,
            max_attempts=self._section.max_attempts,
        )
        (submitted,) = now(self._queue.submit([job]))
        if not isinstance(submitted, Accepted):
            self._end(asked, "refused")
            return
        asked.variant = decision.variant or self._section.variant
        asked.drop = self._variants[asked.variant].quality_drop
        self._open[job.id], asked.held_until_ms = asked, self._events.now_ms + asked.hold_ms
        if asked.counted_by is not None:
            self._events.at(asked.held_until_ms, asked.let_go)
        heappush(self._due, (float(submitted.deadline_ms), job.id))
        idle = next((w for w in self._workers if not w.busy and w.up_at_ms <= self._events.now_ms), None)
        if idle is not None:
            self._work(idle)

    def _not_taken(self, give_up: Callable[[], None]) -> None:
        self._stats_at_ms = -math.inf  # as much as missing statistics say
        give_up()

    def watch(self, wanted: Callable[[], bool]) -> None:
        """What goes on in the background, until nothing is open and ``wanted`` says that nothing will be:
        statistics, the reaper, and idle workers' look for work."""
        if self._events.now_ms >= self._away_until_ms:
            now(self._queue.reap())
            self._read_stats()
            self._tell_ended()
            self._scale()
            for worker in self._workers:
                self._work(worker)
        scale = self._section.workers
        if wanted() or self._open or (not isinstance(scale, int) and len(self._workers) > scale.min):
            self._events.at(self._events.now_ms + _STATS_EVERY_MS, self.watch, wanted)

    def _read_stats(self) -> None:
        if self.reachable:
            self._stats, self._stats_at_ms = now(self._queue.stats()), self._events.now_ms

    def _tell_ended(self) -> None:
        """Those whose deadlines have passed without a result: the queue has told their callers by now."""
        clock, still = self._queue_clock(), []
        while self._due and self._due[0][0] <= clock:
            deadline_ms, id = heappop(self._due)
            if id in self._open and not self._ended(id):
                still.append((deadline_ms, id))
        for entry in still:
            heappush(self._due, entry)

    def _ended(self, id: str) -> bool:
        status = now(self._queue.state(id))
        if status is not None and not status.state.terminal:
            return False
        asked, outcome = self._open.pop(id), _OUTCOMES.get(status.state, "failed") if status else "failed"
        if outcome == "answered" and self._events.now_ms <= asked.held_until_ms:
            self._least_ms[asked.router].add(self._events.now_ms - asked.arrived_ms)
        self._end(asked, outcome)
        return True

    def _work(self, worker: _Worker) -> None:
        """The worker's loop until it runs a batch or has nothing to do; see `workers.batch.loop`."""
        now_ms = self._events.now_ms
        if worker.busy or now_ms < worker.up_at_ms or now_ms < self._away_until_ms:
            return
        while True:
            if not worker.waiting:
                rows = self._table(self._section.variant).max_rows
                lease_ms = int(self._section.lease)
                leases = now(self._queue.claim(rows, lease_ms, worker.name, max_rows=rows))
                worker.waiting = sorted(leases, key=lambda lease: lease.deadline_ms)
                self._tell_ended()  # a claim ends those that it finds too late
            if not worker.waiting:
                return
            name = worker.waiting[0].variant or self._section.variant
            same = [x for x in worker.waiting if (x.variant or self._section.variant) == name]
            table, least_rows = self._table(name), self._least_rows[name]
            dropped, chosen = plan_batch(same, table, float(self._queue_clock()), least_rows)
            gone = {lease.id for lease in (*dropped, *chosen)}
            worker.waiting = [lease for lease in worker.waiting if lease.id not in gone]
            if dropped:
                now(self._queue.settle([Missed(x.id, x.token, "too late") for x in dropped]))
                for lease in dropped:
                    self._close(lease.id)
            if chosen:
                self._run(worker, name, chosen)
                return

    def _run(self, worker: _Worker, name: str, chosen: list[Lease]) -> None:
        rows = sum(lease.rows for lease in chosen)
        limit = self._table(name).max_rows
        if rows > limit and len(chosen) > 1:
            self._violated(f"a batch of {rows} rows, over the limit of {limit}")
        late = min(lease.deadline_ms for lease in chosen) - self._queue_clock()
        if late < 0:
            self._violated(f"a job was run {-late} ms too late")
        worker.busy = True
        run_ms = self._timing.run_ms(self._variants[name], rows) * worker.factor
        self.busy_ms += run_ms
        self.batches += 1
        self.batch_rows += rows
        ends_ms = self._events.now_ms + run_ms + self._timing.costs.claim_ms
        self._events.at(ends_ms, self._done, worker, worker.epoch, name, chosen)
        # Long before a lease runs out the worker renews it, as often as the batch needs.
        self._renew(worker, worker.epoch, [lease.ref for lease in chosen], ends_ms)

    def _renew(self, worker: _Worker, epoch: int, held: list[LeaseRef], until_ms: float) -> None:
        lease_ms = self._section.lease
        if epoch != worker.epoch:
            return
        if self._events.now_ms >= self._away_until_ms:
            now(self._queue.extend(held, int(lease_ms)))
        if self._events.now_ms + lease_ms / 3.0 < until_ms:
            self._events.at(self._events.now_ms + lease_ms / 3.0, self._renew, worker, epoch, held, until_ms)

    def _done(self, worker: _Worker, epoch: int, name: str, chosen: list[Lease]) -> None:
        if epoch != worker.epoch:
            return
        if self._events.now_ms < self._away_until_ms:
            self._events.at(self._away_until_ms, self._done, worker, epoch, name, chosen)
            return
        worker.busy = False
        now(self._queue.settle([Done(x.id, x.token, b"", name) for x in chosen]))
        for lease in chosen:
            self._close(lease.id)
        self._work(worker)

    def _close(self, id: str) -> None:
        """Tell of a job's end if it has ended; a lost lease leaves it to another worker."""
        if id in self._open:
            self._ended(id)

    def _table(self, name: str) -> BoundTable:
        table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = BoundTable.of(self._variants[name].profile, self._section.max_batch)
            self._least_rows[name] = table.efficient(LEAST_SHARE)
        return table

    def suffer(self, fault: Fault, restart_ms: float) -> None:
        """Let a fault happen now."""
        now_ms = self._events.now_ms
        if fault.kind == "outage":
            self._away_until_ms = max(self._away_until_ms, now_ms + fault.lasts_ms)
            # A router is asking all the time, and has its answer as soon as there is one.
            self._events.at(self._away_until_ms, self._read_stats)
            return
        if not self._workers:
            return
        worker = self._workers[fault.index % len(self._workers)]
        if fault.kind == "slow":
            worker.factor *= fault.factor
            self._events.at(now_ms + fault.lasts_ms, self._recover, worker, fault.factor)
            return
        worker.epoch += 1
        worker.busy, worker.waiting = False, []
        worker.up_at_ms = now_ms + restart_ms
        self._events.at(worker.up_at_ms, self._work, worker)

    @staticmethod
    def _recover(worker: _Worker, factor: float) -> None:
        worker.factor /= factor
