"""The deciding half of the online dispatcher: what waits by deadline, what is in flight, what to start now.

Pure: the dispatcher drives it with futures and Ray calls, the simulator with events in virtual time. All
times are milliseconds on one clock of the caller's choice.
"""

from __future__ import annotations

from bisect import bisect_left, insort_right
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from optimizers.profile import OnlineFit
from router.calibration import Margin
from router.estimate import OnlineLoad, Variant
from workers.batching import BoundTable, Idle, Run, Wait, next_batch

#: Per replica: one batch runs, the next is already there.
BATCHES_IN_FLIGHT = 2
_REFIT_EVERY_MS = 250.0
_PROBE_MS, _PROBE_DOUBTFUL_MS = 5_000.0, 250.0
#: For so long after it was passed over, a variant is stepped up to with time to spare only.
_STRAINED_MS = 1_000.0


class Item(Protocol):
    """One request (or a part of one) that waits. ``left``: its caller is gone, it costs no work any more.
    ``predicted_ms``: the time to its answer that was promised on arrival; 0 where none was."""

    @property
    def deadline_ms(self) -> float: ...

    @property
    def rows(self) -> int: ...

    @property
    def droppable(self) -> bool: ...

    @property
    def left(self) -> bool: ...

    @property
    def arrived_ms(self) -> float: ...

    @property
    def predicted_ms(self) -> float: ...


T = TypeVar("T", bound=Item)
_by_deadline = attrgetter("deadline_ms")


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


class _Lane(Generic[T]):
    """What waits for one variant, earliest deadline first, and the variant's live profile."""

    def __init__(self, variant: Variant, max_batch: int) -> None:
        self.variant, self._max_batch = variant, max_batch
        self.waiting: list[T] = []
        #: Hopeless, and to be run all the same.
        self.late: list[T] = []
        self.rows = 0
        self.table = BoundTable.of(variant.profile, max_batch)
        self._base, self._fit = variant.profile, OnlineFit(variant.profile)
        self._refit_at_ms = 0.0
        self.learnt_ms = float("-inf")

    def add(self, item: T) -> None:
        insort_right(self.waiting, item, key=_by_deadline)
        self.rows += item.rows

    def take(self, count: int) -> list[T]:
        """The first ``count``, without those whose callers have left."""
        items = self.waiting[:count]
        del self.waiting[:count]
        self.rows -= sum(item.rows for item in items)
        return [item for item in items if not item.left]

    def set_aside(self, items: list[T]) -> None:
        self.late += items
        self.rows += sum(item.rows for item in items)

    def take_late(self) -> list[T]:
        """One batch of those set aside, longest there first."""
        count = rows = 0
        for item in self.late:
            if count and rows + item.rows > self._max_batch:
                break
            count, rows = count + 1, rows + item.rows
        items = self.late[:count]
        del self.late[:count]
        self.rows -= rows
        return [item for item in items if not item.left]

    def forget(self, item: T) -> None:
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

    def learn(self, rows: int, ms: float, now_ms: float, hop_ms: float) -> bool:
        """Correct the profile by a live batch; True where the tables, which count the hop, followed."""
        self._fit.add(rows, ms)
        self.learnt_ms = now_ms
        if now_ms < self._refit_at_ms:
            return False
        self._refit_at_ms = now_ms + _REFIT_EVERY_MS
        self.variant = replace(self.variant, profile=self._fit.profile())
        self.table = BoundTable.of(self.variant.profile.scaled(1.0, hop_ms), self._max_batch)
        return True

    @property
    def pessimism(self) -> float:
        """How many times slower the live bound for one row is than the measured one."""
        return self.variant.profile.bound_ms(1) / self._base.bound_ms(1)


class _Hop:
    """What a call costs beside the model, ms: its mean, and the mean deviation from that (RFC 6298)."""

    def __init__(self) -> None:
        self.mean_ms, self._deviation_ms = 1.0, 0.5

    def learn(self, ms: float) -> None:
        # One stall must not shut the door on the requests of the next second.
        ms = min(ms, self.mean_ms + 8.0 * self._deviation_ms)
        self._deviation_ms += 0.05 * (abs(ms - self.mean_ms) - self._deviation_ms)
        self.mean_ms += 0.05 * (ms - self.mean_ms)


class _Flights:
    """The batches that are away, by the moment at which each is expected to end on its replica."""

    def __init__(self) -> None:
        self._ends: list[float] = []
        self._of: dict[int, tuple[float, float]] = {}
        self._sum = 0.0
        self._number = 0

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, sent_ms: float, end_ms: float) -> int:
        self._number += 1
        self._of[self._number] = (sent_ms, end_ms)
        insort_right(self._ends, end_ms)
        self._sum += end_ms
        return self._number

    def remove(self, number: int) -> float | None:
        """When it was sent; None where it is gone already."""
        sent_ms, end_ms = self._of.pop(number, (None, 0.0))
        if sent_ms is not None:
            del self._ends[bisect_left(self._ends, end_ms)]
            self._sum = self._sum - end_ms if self._ends else 0.0
        return sent_ms

    def remaining_ms(self, now_ms: float) -> float:
        """The work that is away, added up; what is overdue counts as about to end."""
        if not self._ends:
            return 0.0
        overdue = bisect_left(self._ends, now_ms)
        rest = self._sum - sum(self._ends[:overdue]) if overdue else self._sum
        return rest - (len(self._ends) - overdue) * now_ms

    def free_at_ms(self, replicas: int) -> float:
        """When a replica is predicted to be free; 0 where one is idle."""
        behind = len(self._ends) - replicas
        return self._ends[behind] if behind >= 0 else 0.0


class Lanes(Generic[T]):
    """One model's online side. ``variants`` come best quality first."""

    def __init__(
        self, variants: Mapping[str, Variant], *, replicas: int, max_batch: int, max_waiting: int
    ) -> None:
        self._lanes: dict[str, _Lane[T]] = {n: _Lane(v, max_batch) for n, v in variants.items()}
        self._replicas, self._max_batch, self._max_waiting = replicas, max_batch, max_waiting
        self._variants = dict(variants)
        self._slots = replicas * BATCHES_IN_FLIGHT
        self._flights = _Flights()
        self._hop = _Hop()
        self._margin = Margin()
        self._strained_until_ms: dict[str, float] = {}
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

    def room_for(self, items: int) -> bool:
        return self.waiting + items <= self._max_waiting

    def load(self, now_ms: float) -> OnlineLoad:
        """The online side as `decide` weighs it; its cost does not grow with what waits."""
        waiting_ms = 0.0
        for lane in self._lanes.values():
            if lane.rows:
                waiting_ms += lane.table.predict_ms(lane.rows)
        return OnlineLoad(
            self._variants,
            self._replicas,
            self._flights.remaining_ms(now_ms) / self._replicas,
            waiting_ms,
            self._hop.mean_ms,
            self.waiting >= self._max_waiting,
            self._margin.value,
            self._strained(now_ms) if self._strained_until_ms else (),
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

        It has not where every slot is taken, nor where others wait already, more urgent ones, for a
        moment that `step` has named, and the batch has room for more.
        """
        lane = self._lanes[variant]
        waited = bool(lane.waiting)
        lane.add(item)
        if len(self._flights) >= self._slots:
            return False
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
        return Step(hopeless, None)

    def _plan(self, lane: _Lane[T], now_ms: float, hopeless: list[T]) -> Run | Wait | Idle:
        """What the lane should do now; those of its head that are hopeless are out of it then."""
        plan = next_batch(
            lane.waiting,
            lane.table,
            now_ms,
            busy_until_ms=self._flights.free_at_ms(self._replicas),
            lead_ms=self._hop.mean_ms / 2.0,
        )
        dropped = lane.take(plan.dropped)
        gone = [item for item in dropped if item.droppable]
        hopeless += gone
        promised = sum(item.predicted_ms > 0.0 for item in gone)
        self._margin.learn(promised, promised)
        lane.set_aside([item for item in dropped if not item.droppable])
        return plan

    def _start(self, lane: _Lane[T], items: list[T], now_ms: float) -> Start[T]:
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
        promised = short = 0
        for item in start.items:
            if item.predicted_ms > 0.0:
                promised += 1
                short += now_ms - item.arrived_ms > item.predicted_ms
        self._margin.learn(short, promised)
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
            or self._margin.value > 1.0
        )
        due_ms = _PROBE_DOUBTFUL_MS if doubtful else _PROBE_MS
        return lane.variant.name if now_ms - lane.learnt_ms >= due_ms else None
