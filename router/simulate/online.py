"""The online side of one model in virtual time: each router's scheduler, and the replicas they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from router.policy import OnlineSection
from router.policy.facts import MeasuredVariant
from router.scheduling.actions import Action, BatchDispatch, Drop, Fail, SendBatch, WakeAt
from router.scheduling.admission import RunOnline
from router.scheduling.delivery import BatchDelivery, RunTimes, give_up_after_ms
from router.scheduling.prediction import OnlineLoad
from router.scheduling.scheduler import Scheduler
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

#: A request that is dropped is dropped by its deadline, or so much later.
_DROPPED_WITHIN_MS = 1.0


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
        self._timer += 1  # replaces the timer that was set before
        for action in self.scheduler.step(self.events.now_ms):
            match action:
                case Drop(items):
                    for item in items:
                        self.fail(item, "expired")
                case SendBatch(batch):
                    self._check(batch)
                    _SimulatedDelivery(self, self._pool, batch)
                case WakeAt(at_ms):
                    self.events.at(max(self.events.now_ms, at_ms), self._ring, self._timer)

    def _ring(self, timer: int) -> None:
        if timer == self._timer:
            self.pump()

    def _check(self, batch: BatchDispatch[SimulatedItem]) -> None:
        if batch.rows > self._max_batch:
            self._violated(f"a batch of {batch.rows} rows, over the limit of {self._max_batch}")
        for item in batch.items:
            if item.droppable and item.deadline_ms <= self.events.now_ms:
                self._violated(f"a request was run {self.events.now_ms - item.deadline_ms:.3f} ms too late")

    def answer(self, item: SimulatedItem) -> None:
        owner = item.owner
        if owner is not None:
            owner.parts -= 1
            if not owner.parts and not owner.left:
                self._over(owner, "answered")

    def fail(self, item: SimulatedItem, outcome: Outcome, silent_ms: float = 0.0) -> None:
        """Its caller gets an error: by its deadline, or once its batch was overdue, at ``silent_ms``."""
        owner = item.owner
        if owner is None or owner.left:
            return
        late_ms = self.events.now_ms - max(item.deadline_ms, silent_ms)
        if outcome == "expired" and late_ms > _DROPPED_WITHIN_MS:
            self._violated(f"a request was dropped {late_ms:.3f} ms after its deadline")
        owner.left = True
        self._over(owner, outcome)


class _SimulatedDelivery:
    """Carries out one `BatchDelivery` with events, as `router.online.dispatcher` does with calls."""

    __slots__ = ("_dispatcher", "_first", "_pool", "_protocol", "_sent")

    def __init__(
        self, dispatcher: SimulatedDispatcher, pool: Pool, first: BatchDispatch[SimulatedItem]
    ) -> None:
        self._dispatcher, self._pool, self._first = dispatcher, pool, first
        self._protocol = BatchDelivery(dispatcher.scheduler, first)
        self._sent = pool.send(first, self), dispatcher.events.now_ms
        dispatcher.events.at(first.silent_ms, self._overdue, True)

    def completed(self, batch: BatchDispatch[SimulatedItem], times: RunTimes) -> None:
        if self._protocol.answered(batch, self._dispatcher.events.now_ms, times):
            for item in batch.items:
                self._dispatcher.answer(item)
        self._dispatcher.pump()

    def failed(self, batch: BatchDispatch[SimulatedItem]) -> None:
        self._carry_out(self._protocol.failed(batch, self._dispatcher.events.now_ms))
        self._dispatcher.pump()

    def _overdue(self, first_time: bool = False) -> None:
        if not self._protocol.is_open:
            return
        if first_time:  # nearly every batch is back by now: only of the others the end is watched
            attempt, sent_ms = self._sent
            self._watch(attempt, self._first, sent_ms)
        if not self._protocol.all_answered:
            self._carry_out(self._protocol.overdue(self._dispatcher.events.now_ms))
            self._dispatcher.pump()

    def _carry_out(self, actions: list[Action[SimulatedItem]]) -> None:
        dispatcher = self._dispatcher
        for action in actions:
            match action:
                case SendBatch(batch):
                    self._watch(self._pool.send(batch, self), batch, dispatcher.events.now_ms)
                case Drop(items):
                    for item in items:
                        dispatcher.fail(item, "expired", self._first.silent_ms)
                case Fail(items):
                    for item in items:
                        dispatcher.fail(item, "failed")
                case WakeAt(at_ms):
                    dispatcher.events.at(at_ms, self._overdue)

    def _watch(self, attempt: int, batch: BatchDispatch[SimulatedItem], sent_ms: float) -> None:
        events = self._dispatcher.events
        events.at(max(events.now_ms, sent_ms + give_up_after_ms(batch)), self._give_up, attempt, batch)

    def _give_up(self, attempt: int, batch: BatchDispatch[SimulatedItem]) -> None:
        """What the dispatcher's timeout does: the answer is not waited for any longer."""
        if self._pool.forget(attempt):
            self.failed(batch)
