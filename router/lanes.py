"""The deciding half of the online dispatcher: what waits by deadline, what is in flight, what to start now.

Pure: the dispatcher drives it with futures and Ray calls, the simulator with events in virtual time. All
times are milliseconds on one clock of the caller's choice.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Generic

from router.calibration import Margins
from router.estimate import OnlineLoad, Variant
from router.flights import Flights, Hop
from router.lane import Lane, T
from workers.batching import Idle, Run, Wait, latest_start_ms, next_batch

#: Per replica: one batch runs, the next is already there.
BATCHES_IN_FLIGHT = 2
_PROBE_MS, _PROBE_DOUBTFUL_MS = 5_000.0, 250.0
#: A batch led by a request with this many times the shortest budget asked for lately takes at most one
#: such part of that: it cannot be interrupted, and the next urgent request must find a replica in time.
_RELAXED, _LATELY_MS = 4.0, 2_000.0
_DEMAND_MS = 1_000.0
#: For so long after it was passed over, a variant is stepped up to with time to spare only.
_STRAINED_MS = 1_000.0


@dataclass(frozen=True, slots=True)
class Start(Generic[T]):
    """Send these as one batch of ``variant``; tell `Lanes.landed` of ``flight`` when it is back."""

    flight: int
    variant: str
    items: list[T]
    rows: int
    bound_ms: float


@dataclass(frozen=True, slots=True)
class Step(Generic[T]):
    """What to do now: tell the callers of ``hopeless``, send ``start``. Without a start there is nothing
    more to do before ``wake_ms`` (None: before something arrives or lands)."""

    hopeless: list[T]
    start: Start[T] | None
    wake_ms: float | None = None


class _Urgency:
    """The shortest budget that was asked for lately."""

    def __init__(self) -> None:
        self._now_ms = self._before_ms = math.inf
        self._turns_at_ms = -math.inf

    def note(self, budget_ms: float, now_ms: float) -> None:
        if now_ms >= self._turns_at_ms:
            idle = now_ms >= self._turns_at_ms + _LATELY_MS
            self._before_ms = math.inf if idle else self._now_ms
            self._now_ms, self._turns_at_ms = math.inf, now_ms + _LATELY_MS
        if budget_ms < self._now_ms:
            self._now_ms = budget_ms

    @property
    def shortest_ms(self) -> float:
        return min(self._now_ms, self._before_ms)


class _Demand:
    """How many rows a second are asked for, by an exponential window."""

    def __init__(self) -> None:
        self.rows_per_s = 0.0
        self._at_ms = -math.inf

    def note(self, rows: int, now_ms: float) -> None:
        kept = math.exp((self._at_ms - now_ms) / _DEMAND_MS)
        self.rows_per_s = self.rows_per_s * kept + rows * 1_000.0 / _DEMAND_MS
        self._at_ms = now_ms


class Lanes(Generic[T]):
    """One model's online side. ``variants`` come best quality first."""

    def __init__(
        self, variants: Mapping[str, Variant], *, replicas: int, max_batch: int, max_waiting: int
    ) -> None:
        self._lanes: dict[str, Lane[T]] = {n: Lane(v, max_batch) for n, v in variants.items()}
        self._max_batch, self._max_waiting = max_batch, max_waiting
        self._variants = dict(variants)
        self.resize(replicas)
        self._flights = Flights()
        self._hop = Hop()
        self._margins = Margins()
        self._strained_until_ms: dict[str, float] = {}
        self._urgency, self._demand = _Urgency(), _Demand()
        self._ran_late = False

    @property
    def waiting(self) -> int:
        """How many items wait; at most ``max_waiting``, if `room_for` is heeded."""
        count = 0
        for lane in self._lanes.values():
            count += len(lane.waiting) + len(lane.late)
        return count

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    def resize(self, replicas: int) -> None:
        """So many replicas are there now; with none it is as with one, which will be back."""
        self._replicas = max(1, replicas)
        self._slots = self._replicas * BATCHES_IN_FLIGHT

    def room_for(self, items: int) -> bool:
        return self.waiting + items <= self._max_waiting

    def load(self, now_ms: float, deadline_ms: float = math.inf, rows: int = 0) -> OnlineLoad:
        """The online side as `decide` weighs it for a request of ``rows`` rows with this deadline.

        The request will be taken before whatever is less urgent, so only the rest counts as ahead of it.
        It is noted as asked for, whatever becomes of it. The cost does not grow with what waits.
        """
        waiting_ms = 0.0
        self._urgency.note(deadline_ms - now_ms, now_ms)
        self._demand.note(rows, now_ms)
        for lane in self._lanes.values():
            if lane.rows:
                ahead = lane.rows_before(deadline_ms)
                if ahead:
                    waiting_ms += lane.table.predict_ms(ahead)
        return OnlineLoad(
            self._variants,
            self._replicas,
            self._flights.remaining_ms(now_ms) / self._replicas,
            waiting_ms,
            self._hop.mean_ms,
            self.waiting >= self._max_waiting,
            self._margins.value(deadline_ms - now_ms, now_ms),
            self._strained(now_ms) if self._strained_until_ms else (),
            self._demand.rows_per_s,
        )

    def _strained(self, now_ms: float) -> Collection[str]:
        until = self._strained_until_ms
        for name in [name for name, at in until.items() if at <= now_ms]:
            del until[name]
        return until.keys()

    def pass_over(self, variant: str, now_ms: float) -> None:
        """A request ran on a lesser variant because the work ahead left ``variant`` no time."""
        self._strained_until_ms[variant] = now_ms + _STRAINED_MS

    def add(self, variant: str, item: T) -> bool:
        """Let it wait; True where `step` may have something to do about it now.

        It has not where others wait already, more urgent ones, for a moment that `step` has named, and
        either every slot is taken or the batch has room for more.
        """
        lane = self._lanes[variant]
        waited = bool(lane.waiting)
        lane.add(item)
        if len(self._flights) >= self._slots:
            return lane.waiting[0] is item
        return not waited or lane.rows >= self._max_batch or lane.waiting[0] is item

    def forget(self, variant: str, item: T) -> None:
        """Its caller has left: it takes no room and no part in a batch any more."""
        self._lanes[variant].forget(item)

    def step(self, now_ms: float) -> Step[T]:
        """The next thing to do at ``now_ms``; to be asked again until it starts nothing."""
        hopeless: list[T] = []
        while len(self._flights) < self._slots:
            live = [lane for lane in self._lanes.values() if lane.waiting]
            lane = min(live, key=lambda x: x.waiting[0].deadline_ms) if live else None
            plan = self._plan(lane, now_ms, hopeless) if lane else Idle(0)
            late = next((x for x in self._lanes.values() if x.late), None)
            items: list[T] = []
            if late and not (self._ran_late and lane):
                # In turns: late work must not make the rest late, nor wait for ever behind it.
                self._ran_late, lane = True, late
                items = late.take_late()
            elif lane and isinstance(plan, Run):
                self._ran_late = False
                items = lane.take(plan.count)
            elif isinstance(plan, Wait):
                return Step(hopeless, None, plan.until_ms)
            elif not lane:
                break
            if lane and items:  # else all of their callers have left
                return Step(hopeless, self._start(lane, items, now_ms))
        return Step(hopeless, None, self._give_up(now_ms, hopeless))

    def _give_up(self, now_ms: float, hopeless: list[T]) -> float | None:
        """With every slot taken: drop those whom even a slot at this moment would not help any more.

        Their callers are told now, not when a replica that died or hangs has been replaced. Gives when
        to look again; None where nobody waits whose deadline will pass.
        """
        again_ms = math.inf
        for lane in self._lanes.values():
            while lane.waiting:
                latest_ms = latest_start_ms(lane.waiting[0], lane.table, self._hop.mean_ms / 2.0)
                if now_ms < latest_ms:
                    again_ms = min(again_ms, latest_ms)
                    break
                self._drop(lane, 1, now_ms, hopeless)
        return None if again_ms == math.inf else again_ms

    def _plan(self, lane: Lane[T], now_ms: float, hopeless: list[T]) -> Run | Wait | Idle:
        """What the lane should do now; those of its head that are hopeless are out of it then."""
        free_at_ms, lead_ms = self._flights.free_at_ms(self._replicas), self._hop.mean_ms / 2.0
        plan = next_batch(
            lane.waiting,
            lane.table,
            now_ms,
            busy_until_ms=free_at_ms,
            lead_ms=lead_ms,
            least_rows=lane.least_rows,
            waiting_rows=lane.rows,
            most_rows=self._most_rows(lane, max(now_ms + lead_ms, free_at_ms)),
        )
        self._drop(lane, plan.dropped, now_ms, hopeless)
        return plan

    def _drop(self, lane: Lane[T], count: int, now_ms: float, hopeless: list[T]) -> None:
        """Take out the first, hopeless as they are; those that are to be run all the same are set aside."""
        dropped = lane.take(count)
        gone = [item for item in dropped if item.droppable]
        hopeless += gone
        broken = [(x.deadline_ms - x.arrived_ms, True) for x in gone if x.predicted_ms > 0.0]
        self._margins.learn(broken, now_ms)
        lane.set_aside([item for item in dropped if not item.droppable])

    def _most_rows(self, lane: Lane[T], starts_ms: float) -> int | None:
        """The largest batch that keeps its leader's promise and leaves others a chance; None: any.

        A batch that were filled up to the deadline would make every answer late against its prediction,
        and the next predictions wide. And it cannot be interrupted: where others ask with much shorter
        budgets, one led by a relaxed request must not take all of theirs.
        """
        leader, most = lane.waiting[0], None
        if leader.predicted_ms > 0.0:
            due_ms = leader.arrived_ms + leader.predicted_ms
            most = max(lane.least_rows, lane.table.largest(due_ms - starts_ms))
        if leader.deadline_ms - leader.arrived_ms >= _RELAXED * self._urgency.shortest_ms:
            fair = max(lane.efficient_rows, lane.table.largest(self._urgency.shortest_ms / _RELAXED))
            most = fair if most is None else min(fair, most)
        return most

    def _start(self, lane: Lane[T], items: list[T], now_ms: float) -> Start[T]:
        rows = sum(item.rows for item in items)
        begins_ms = max(now_ms + self._hop.mean_ms / 2.0, self._flights.free_at_ms(self._replicas))
        # A call keeps both processes busy for about the hop, however short the model: sending more often
        # than that makes many small batches out of one and answers nobody sooner.
        busy_ms = max(lane.variant.profile.predict_ms(rows), self._hop.mean_ms)
        flight = self._flights.add(now_ms, begins_ms + busy_ms)
        return Start(flight, lane.variant.name, items, rows, lane.table.bound_ms(rows))

    def landed(self, start: Start[T], now_ms: float, run_ms: float, wait_ms: float) -> None:
        """A batch is back: it ran ``run_ms`` after ``wait_ms`` behind another; the rest was the hop."""
        sent_ms = self._flights.remove(start.flight)
        if sent_ms is None:
            return
        self._hop.learn(max(0.0, now_ms - sent_ms - wait_ms - run_ms))
        came_due = [
            (item.deadline_ms - item.arrived_ms, now_ms - item.arrived_ms > item.predicted_ms)
            for item in start.items
            if item.predicted_ms > 0.0
        ]
        self._margins.learn(came_due, now_ms)
        lane = self._lanes[start.variant]
        if lane.learn(start.rows, run_ms, now_ms, self._hop.mean_ms):
            self._variants = {name: x.variant for name, x in self._lanes.items()}

    @staticmethod
    def may_resend(start: Start[T], now_ms: float) -> bool:
        """Whether a batch that its replica failed is worth a second try: one of it may still be in time."""
        return now_ms + start.bound_ms <= max(item.deadline_ms for item in start.items)

    def lost(self, start: Start[T]) -> None:
        """A batch will not come back; nothing is learnt from it."""
        self._flights.remove(start.flight)

    def empty(self) -> list[T]:
        """Take out everything that waits."""
        items: list[T] = []
        for lane in self._lanes.values():
            items += lane.take(len(lane.waiting))
            while lane.late:
                items += lane.take_late()
        return items

    def stale_variant(self, now_ms: float) -> str | None:
        """The variant that a probe should run now, if any: its estimate may be wrong for want of news.

        Estimates are corrected by what runs. Where they have become so bad that everything is refused,
        nothing runs, and only a probe can tell that the trouble is over. Busy lanes need none.
        """
        if len(self._flights) or self.waiting:
            return None
        lane = min(self._lanes.values(), key=lambda x: x.learnt_ms)
        doubtful = (
            max(x.pessimism for x in self._lanes.values()) > 2.0
            or self._hop.mean_ms > 5.0
            or self._margins.value(math.inf, now_ms) > 1.0
        )
        due_ms = _PROBE_DOUBTFUL_MS if doubtful else _PROBE_MS
        return lane.variant.name if now_ms - lane.learnt_ms >= due_ms else None
