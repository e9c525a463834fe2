"""The online side of one model in virtual time: each router's scheduler, and the replicas they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from router.policy import OnlineSection
from router.policy.facts import MeasuredVariant
from router.scheduling.admission import RunOnline
from router.scheduling.prediction import OnlineLoad
from router.scheduling.scheduler import TRIES, Scheduler
from router.scheduling.variant_queue import BatchDispatch
from router.simulate.events import Events
from router.simulate.faults import Fault
from router.simulate.pool import Pool
from router.simulate.requests import (
    BackgroundWork,
    ItemOwner,
    Outcome,
    ProbeRow,
    RequestPart,
    SimulatedItem,
    SimulatedRequest,
)
from router.simulate.timing import Timing

#: A request that is given up on is given up on by its deadline.
_TOLD_WITHIN_MS = 1.0


class OnlineSide:
    """Runs what `decide` sends here, on the scheduler of one of ``routers``. ``end(asked, outcome)`` is told
    once of each request."""

    def __init__(
        self,
        section: OnlineSection,
        variants: Mapping[str, MeasuredVariant],
        events: Events,
        timing: Timing,
        end: Callable[[SimulatedRequest, Outcome], None],
        violated: Callable[[str], None],
        routers: int = 1,
    ) -> None:
        best_first = sorted(section.variants, key=lambda name: variants[name].quality_drop)
        ordered = {name: variants[name] for name in best_first}
        self._events = events
        self._pool = Pool(section.replicas, ordered, events, timing, self._tell)
        self.routers = [
            SimulatedDispatcher(section, ordered, self._pool, events, end, violated) for _ in range(routers)
        ]

    @property
    def waiting(self) -> int:
        return sum(front.waiting for front in self.routers)

    @property
    def size(self) -> int:
        """How many replicas there are."""
        return self._pool.size

    @property
    def busy_ms(self) -> float:
        return self._pool.busy_ms

    @property
    def batches(self) -> int:
        return self._pool.batches

    @property
    def batch_rows(self) -> int:
        return self._pool.batch_rows

    @property
    def provided_ms(self) -> float:
        """The replicas' time so far, busy or not."""
        return self.size * self._events.now_ms

    def probe(self) -> None:
        for front in self.routers:
            front.probe()

    def suffer(self, fault: Fault, restart_ms: float) -> None:
        """Let a fault happen now."""
        self._pool.suffer(fault, restart_ms)

    def _tell(self, names: list[str]) -> None:
        for front in self.routers:
            front.set_replicas(names)


class SimulatedDispatcher:
    """One router's part: what `router.online.dispatcher` does with futures and calls, in virtual time."""

    def __init__(
        self,
        section: OnlineSection,
        variants: Mapping[str, MeasuredVariant],
        pool: Pool,
        events: Events,
        end: Callable[[SimulatedRequest, Outcome], None],
        violated: Callable[[str], None],
    ) -> None:
        self.variants = variants
        self.scheduler: Scheduler[SimulatedItem] = Scheduler(
            variants,
            replicas=section.replicas,
            max_batch=section.max_batch,
            max_waiting=section.max_waiting,
            in_time=section.in_time,
        )
        self.scheduler.set_replicas(pool.names)
        self._max_batch = section.max_batch
        self._pool, self.events = pool, events
        self._end, self._violated = end, violated
        self._timer = 0

    @property
    def waiting(self) -> int:
        return self.scheduler.waiting

    def load(self, deadline_ms: float, rows: int) -> OnlineLoad:
        return self.scheduler.load(self.events.now_ms, deadline_ms, rows)

    def set_replicas(self, names: list[str]) -> None:
        self.scheduler.set_replicas(names)
        self.pump()

    def probe(self) -> None:
        """What the router does ten times a second: a row where an estimate may be out of date."""
        variant = self.scheduler.stale_variant(self.events.now_ms)
        if variant is not None and self.scheduler.add(variant, ProbeRow()):
            self.pump()

    def run(self, asked: SimulatedRequest, decision: RunOnline) -> None:
        """What the dispatcher's ``run`` does with a decision."""
        asked.variant, asked.drop = decision.variant, self.variants[decision.variant].quality_drop
        asked.droppable, asked.online = decision.droppable, True
        if asked.rows <= self._max_batch:
            asked.rows = min(self._max_batch, max(asked.rows, asked.request.row_cost))
        if decision.degraded_from is not None:
            self.scheduler.note_degraded(decision.degraded_from, self.events.now_ms)
        self.put(asked, decision.variant)

    def put(self, whole: ItemOwner, variant: str) -> None:
        """Let it wait for its turn, in parts where it has more rows than a batch."""
        parts: list[SimulatedItem] = [whole]
        if whole.rows > self._max_batch:
            sizes = [min(self._max_batch, whole.rows - at) for at in range(0, whole.rows, self._max_batch)]
            parts, whole.parts = [RequestPart(whole, size) for size in sizes], len(sizes)
        if not self.scheduler.room_for(len(parts)):
            self._over(whole, "refused")
            return
        for item in parts:
            if self.scheduler.add(variant, item):
                self.pump()

    def _over(self, whole: ItemOwner, outcome: Outcome) -> None:
        if isinstance(whole, SimulatedRequest):
            self._end(whole, outcome)
        elif isinstance(whole, BackgroundWork):
            whole.over(outcome)

    def pump(self) -> None:
        self._timer += 1  # a timer that was set before rings in vain
        now_ms = self.events.now_ms
        while True:
            step = self.scheduler.step(now_ms)
            for item in step.hopeless:
                self.fail(item, "expired")
            if step.start is None:
                break
            self._check(step.start)
            _Away(self, step.start)
        if step.wake_ms is not None:
            self.events.at(max(now_ms, step.wake_ms), self._ring, self._timer)

    def _ring(self, timer: int) -> None:
        if timer == self._timer:
            self.pump()

    def _check(self, start: BatchDispatch[SimulatedItem]) -> None:
        if start.rows > self._max_batch:
            self._violated(f"a batch of {start.rows} rows, over the limit of {self._max_batch}")
        for item in start.items:
            if item.droppable and item.deadline_ms <= self.events.now_ms:
                self._violated(f"a request was run {self.events.now_ms - item.deadline_ms:.3f} ms too late")

    def send(self, start: BatchDispatch[SimulatedItem], away: _Away) -> None:
        self._pool.send(start, away)

    def answer(self, item: SimulatedItem) -> None:
        owner = item.owner
        if owner is not None:
            owner.parts -= 1
            if not owner.parts and not owner.left:
                self._over(owner, "answered")

    def fail(self, item: SimulatedItem, outcome: Outcome, told_from_ms: float = 0.0) -> None:
        """Its caller is told; by its deadline, or from ``told_from_ms`` on where his batch was away."""
        owner = item.owner
        if owner is None or owner.left:
            return
        late_ms = self.events.now_ms - max(item.deadline_ms, told_from_ms)
        if outcome == "expired" and late_ms > _TOLD_WITHIN_MS:
            self._violated(f"a caller was told {late_ms:.3f} ms after the deadline that it would not be met")
        owner.left = True
        self._over(owner, outcome)


class _Away:
    """One batch on its way, tried twice at most; see `router.online.dispatcher`."""

    __slots__ = ("_front", "_open", "_settled", "_start", "_tries")

    def __init__(self, front: SimulatedDispatcher, start: BatchDispatch[SimulatedItem]) -> None:
        self._front, self._start = front, start
        self._open, self._tries, self._settled = 1, 1, False
        front.send(start, self)
        front.events.at(start.silent_ms, self._miss)

    def _told(self) -> bool:
        return self._settled or all(item.left for item in self._start.items)

    def completed(
        self, start: BatchDispatch[SimulatedItem], run_ms: float, wait_ms: float, ran_ms: float
    ) -> None:
        front, first_answer = self._front, not self._told()
        self._open -= 1
        front.scheduler.completed(start, front.events.now_ms, run_ms, wait_ms, ran_ms, first_answer)
        if not self._settled:
            self._settled = True
            for item in start.items:
                front.answer(item)
        front.pump()

    def abandon(self, start: BatchDispatch[SimulatedItem]) -> None:
        """The call came back with an error."""
        self._open -= 1
        front, again = self._front, None
        if not self._open and not self._told():
            if self._tries < TRIES:
                again = front.scheduler.retry(start, front.events.now_ms, failed=True)
            if again is not None:
                self._retry(again)
            else:
                for item in self._start.items:
                    front.fail(item, "failed")
                self._settled = True
        front.scheduler.abandon(start)
        front.pump()

    def _retry(self, again: BatchDispatch[SimulatedItem]) -> None:
        self._open, self._tries = self._open + 1, self._tries + 1
        self._front.send(again, self)

    def _miss(self) -> None:
        """The batch is overdue by more than its bound explains."""
        if not self._open or self._told():
            return
        front, start, now_ms = self._front, self._start, self._front.events.now_ms
        if self._tries < TRIES:
            again = front.scheduler.retry(start, now_ms, failed=False)
            if again is not None:
                self._retry(again)
        next_ms = float("inf")
        for item in start.items:
            if item.droppable and not item.left:
                if item.deadline_ms <= now_ms:
                    front.fail(item, "expired", start.silent_ms)
                else:
                    next_ms = min(next_ms, item.deadline_ms)
        if next_ms < float("inf"):
            front.events.at(next_ms, self._miss)
        front.pump()
