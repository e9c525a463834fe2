"""The deciding half of the online dispatcher: what waits by deadline, what is in flight, what to start now.

Pure: the dispatcher drives it with futures and Ray calls, the simulator with events in virtual time. All
times are milliseconds on one clock of the caller's choice.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Generic

from router.policy.facts import MeasuredVariant
from router.scheduling.demand import Demand, Urgency
from router.scheduling.headroom import Promises
from router.scheduling.in_flight import Hop
from router.scheduling.prediction import OnlineLoad
from router.scheduling.probing import PROBE_MS, doubtful, probe_after_ms
from router.scheduling.replica_set import UNHEARD_MS, Fleet, Member
from router.scheduling.variant_queue import Form, Lane, Start, Step, T
from workers.batching import Idle, Run, Wait, latest_start_ms, next_batch

#: A batch led by a request with this many times the shortest budget asked for lately takes at most one
#: such part of that: it cannot be interrupted, and the next urgent request must find a replica in time.
_RELAXED = 4.0
#: A batch is sent to so many replicas at most.
TRIES = 2
#: A slow replica is taken although the answer comes a little later from it: what it does, the others need
#: not do.
_SOONER = 1.5
#: For so long after it was passed over, a variant is stepped up to with time to spare only.
_STRAINED_MS = 1_000.0
#: A batch is overdue beyond explanation when it has taken this many times its bound, and so much more.
_SILENT_BOUNDS, _SILENT_MS = 4.0, 100.0


class Lanes(Generic[T]):
    """One model's online side. ``variants`` come best quality first; of what is accepted the share
    ``in_time`` is to be answered in time. Only items of one ``form`` share a batch; without it all may."""

    def __init__(
        self,
        variants: Mapping[str, MeasuredVariant],
        *,
        replicas: int,
        max_batch: int,
        max_waiting: int,
        in_time: float = 0.0,
        form: Form[T] | None = None,
    ) -> None:
        self._lanes: dict[str, Lane[T]] = {n: Lane(v, max_batch, form) for n, v in variants.items()}
        self._max_batch, self._max_waiting = max_batch, max_waiting
        self._variants = dict(variants)
        self._fleet = Fleet(replicas)
        self.hop = Hop()
        best = next(iter(variants.values())).profile
        self._promises = Promises(in_time, best.bound_ms(1))
        self._strained_until_ms: dict[str, float] = {}
        self._urgency, self._demand = Urgency(), Demand()
        self._ran_late = False

    @property
    def waiting(self) -> int:
        """How many items wait; at most ``max_waiting``, if `room_for` is heeded."""
        return sum(len(lane.waiting) + len(lane.late) for lane in self._lanes.values())

    @property
    def in_flight(self) -> int:
        return len(self._fleet.flights)

    def become(self, names: Collection[str]) -> None:
        """These replicas live now; with none it is as with one, which will be back."""
        gone = self._fleet.become(names)
        for lane in self._lanes.values():
            lane.forget_pace(gone)

    def configure(self, max_batch: int, max_waiting: int, in_time: float) -> None:
        """Go on under other settings; what waits and what was learnt stays."""
        self._max_waiting = max_waiting
        self._promises.aim(in_time)
        if max_batch != self._max_batch:
            self._max_batch = max_batch
            for lane in self._lanes.values():
                lane.resize(max_batch, self.hop.mean_ms)

    def room_for(self, items: int) -> bool:
        return self.waiting + items <= self._max_waiting

    def load(self, now_ms: float, deadline_ms: float = math.inf, rows: int = 0) -> OnlineLoad:
        """The online side as `decide` weighs it for a request of ``rows`` rows with this deadline.

        The request will be taken before whatever is less urgent, so only the rest counts as ahead of it.
        It is noted as asked for, whatever becomes of it. The cost does not grow with what waits.
        """
        waiting_ms, waits, count = 0.0, {}, 0
        fleet, budget_ms = self._fleet, deadline_ms - now_ms
        fleet.heed(now_ms)
        margin, spare_ms = self._promises.widths(budget_ms, now_ms)
        self._urgency.note(budget_ms, now_ms)
        self._demand.note(rows, now_ms)
        replicas = fleet.size
        worth = replicas / fleet.rooms
        for name, lane in self._lanes.items():
            if lane.rows:
                count += len(lane.waiting) + len(lane.late)
                ahead = lane.rows_before(deadline_ms)
                if ahead:
                    work_ms = lane.table.predict_ms(ahead) * worth
                    waiting_ms += work_ms
                    waits[name] = ahead, work_ms, lane.least_rows
        return OnlineLoad(
            self._variants,
            replicas,
            fleet.busy_ms(now_ms),
            waiting_ms,
            self.hop.mean_ms,
            count >= self._max_waiting,
            margin,
            self._strained(now_ms) if self._strained_until_ms else (),
            self._demand.rows_per_s,
            waits,
            self._max_batch,
            spare_ms,
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
        if not self._fleet.has_room:
            return lane.waiting[0] is item
        return not waited or lane.rows >= self._max_batch or lane.waiting[0] is item

    def forget(self, variant: str, item: T) -> None:
        """Its caller has left: it takes no room and no part in a batch any more."""
        self._lanes[variant].forget(item)

    def step(self, now_ms: float) -> Step[T]:
        """The next thing to do at ``now_ms``; to be asked again until it starts nothing."""
        hopeless: list[T] = []
        fleet = self._fleet
        fleet.heed(now_ms)
        while fleet.has_room:
            live = [lane for lane in self._lanes.values() if lane.waiting]
            lane = min(live, key=lambda x: x.waiting[0].deadline_ms) if live else None
            member, first = self._where(lane, now_ms) if lane else (None, 0)
            plan = self._plan(lane, member, first, now_ms, hopeless) if lane and member else Idle(0)
            late = next((x for x in self._lanes.values() if x.late), None)
            items: list[T] = []
            if late and not (self._ran_late and lane):
                # In turns: late work must not make the rest late, nor wait for ever behind it.
                self._ran_late, lane = True, late
                member = fleet.ready() or fleet.ready_apart()[0]
                items = late.take_late()
            elif lane and isinstance(plan, Run):
                self._ran_late = False
                items = lane.take(plan.count, first, plan.skipped)
            elif isinstance(plan, Wait):
                return Step(hopeless, None, plan.until_ms)
            elif not lane or not member:
                break
            if lane and member and items:  # else all of their callers have left
                return Step(hopeless, self._start(lane, items, member, now_ms))
        return Step(hopeless, None, self._give_up(now_ms, hopeless))

    def _where(self, lane: Lane[T], now_ms: float) -> tuple[Member | None, int]:
        """Where the lane's next batch would be done first, and the place of the first that it would take.

        A replica that is apart takes only what it can do in time, and leaves what is more urgent to the
        others. None where waiting for one of them is better.
        """
        fleet = self._fleet
        usual, slower = fleet.ready(), fleet.ready_apart()
        if not slower:
            return usual, 0
        rows, found = min(lane.rows, self._max_batch), usual or fleet.full()
        best_ms = math.inf
        if found is not None:
            # Behind what waits before it: an idle slow replica may still do the last of it sooner.
            own_ms, all_ms = lane.table.predict_ms(rows), lane.table.predict_ms(lane.rows) / fleet.usual
            best_ms = self._begins_ms(found, now_ms) + _SOONER * max(own_ms, all_ms)
        first = 0
        for member in slower:
            begins_ms, table = self._begins_ms(member, now_ms), lane.pace_of(member).table
            place = lane.feasible_from(begins_ms, table)
            if place is None:
                continue
            unheard = not member.flights and now_ms - member.heard_ms >= UNHEARD_MS
            if unheard or begins_ms + table.predict_ms(rows) < best_ms:
                best_ms, found, first = begins_ms + table.predict_ms(rows), member, place
                if unheard:
                    break
        return (found if found is usual or found in slower else None), first

    def _begins_ms(self, member: Member, now_ms: float) -> float:
        """When a batch that is sent now would begin there."""
        return max(now_ms + self.hop.mean_ms / 2.0 + member.wait_ms, member.busy_until_ms)

    def _give_up(self, now_ms: float, hopeless: list[T]) -> float | None:
        """With every slot taken: drop those whom even a slot at this moment would not help any more.

        Their callers are told now, not when a replica that died or hangs has been replaced. Gives when
        to look again; None where nobody waits whose deadline will pass.
        """
        again_ms = math.inf
        for lane in self._lanes.values():
            while lane.waiting:
                latest_ms = latest_start_ms(lane.waiting[0], lane.table, self.hop.mean_ms / 2.0)
                if now_ms < latest_ms:
                    again_ms = min(again_ms, latest_ms)
                    break
                self._drop(lane, 1, now_ms, hopeless)
        return None if again_ms == math.inf else again_ms

    def _plan(
        self, lane: Lane[T], member: Member, first: int, now_ms: float, hopeless: list[T]
    ) -> Run | Wait | Idle:
        """What ``member`` should do for the lane now; the lane's hopeless heads are out of it then."""
        lead_ms = self.hop.mean_ms / 2.0 + member.wait_ms
        if member.apart:
            unheard = now_ms - member.heard_ms >= UNHEARD_MS
            return next_batch(
                lane.waiting[first : first + self._max_batch + 1],
                lane.pace_of(member).table,
                now_ms,
                busy_until_ms=member.busy_until_ms,
                lead_ms=lead_ms,
                most_rows=1 if unheard else None,
                form=lane.form,
            )
        plan = next_batch(
            lane.waiting,
            lane.table,
            now_ms,
            busy_until_ms=member.busy_until_ms,
            lead_ms=lead_ms,
            least_rows=lane.least_rows,
            waiting_rows=lane.rows,
            form_rows=lane.form_rows if lane.form is not None else None,
            most_rows=self._most_rows(lane, self._begins_ms(member, now_ms)),
            form=lane.form,
        )
        self._drop(lane, plan.dropped, now_ms, hopeless)
        if isinstance(plan, Run) and now_ms < member.held_until_ms and plan.rows < self._max_batch:
            leader = lane.waiting[0]
            due_ms = leader.deadline_ms
            if leader.predicted_ms > 0.0:
                due_ms = min(due_ms, leader.arrived_ms + leader.predicted_ms)
            until_ms = min(member.held_until_ms, due_ms - plan.bound_ms - lead_ms)
            if until_ms > now_ms:
                return Wait(until_ms, 0)
        return plan

    def _drop(self, lane: Lane[T], count: int, now_ms: float, hopeless: list[T]) -> None:
        """Take out the first, hopeless as they are; those that are to be run all the same are set aside."""
        dropped = lane.take(count)
        gone = [item for item in dropped if item.droppable]
        hopeless += gone
        self._promises.dropped(gone, now_ms)
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

    def _start(self, lane: Lane[T], items: list[T], member: Member, now_ms: float) -> Start[T]:
        rows, pace = sum(item.rows for item in items), lane.pace_of(member)
        # A call keeps both processes busy for about the hop, however short the model: sending more often
        # than that makes many small batches out of one and answers nobody sooner.
        busy_ms = max(pace.profile.predict_ms(rows), self.hop.mean_ms)
        end_ms, bound_ms = self._begins_ms(member, now_ms) + busy_ms, pace.table.bound_ms(rows)
        patience_ms = _SILENT_MS + _SILENT_BOUNDS * (bound_ms + member.wait_ms)
        flight = self._fleet.depart(member, now_ms, end_ms, patience_ms)
        return Start(flight, lane.variant.name, items, rows, bound_ms, member.name, end_ms + patience_ms)

    def landed(
        self,
        start: Start[T],
        now_ms: float,
        run_ms: float,
        wait_ms: float,
        ran_ms: float | None = None,
        news: bool = True,
    ) -> None:
        """A batch is back: it ran ``run_ms`` after ``wait_ms`` behind another; the rest was the hop.

        ``ran_ms`` is what its replica has run so far in all, for whomever. ``news``: its callers did not
        have their answers already, by another way.
        """
        flight = self._fleet.arrive(start.flight)
        if flight is None:
            return
        member, lane = flight.member, self._lanes[start.variant]
        if not self._fleet.answered(flight, now_ms):
            self.hop.learn(max(0.0, now_ms - flight.sent_ms - wait_ms - run_ms))
        self._fleet.learn(flight, now_ms, run_ms, wait_ms, self.hop.mean_ms, ran_ms)
        if news:
            self._promises.answered(start.items, now_ms)
        if self._fleet.pace(member, lane.slower(start.rows, run_ms)) and not member.apart:
            for each in self._lanes.values():
                each.forget_pace((member.name,))
        if lane.learn(member, start.rows, run_ms, now_ms, self.hop.mean_ms):
            self._variants = {name: x.variant for name, x in self._lanes.items()}

    def returned(self, start: Start[T], now_ms: float) -> None:
        """A batch is back in a way from which nothing is learnt but that its replica answers."""
        flight = self._fleet.arrive(start.flight)
        if flight is not None:
            self._fleet.answered(flight, now_ms)

    def again(self, start: Start[T], now_ms: float, failed: bool) -> Start[T] | None:
        """A second try of a batch that ``failed``, or that its replica keeps to itself: on another replica.

        None where it would come too late, or, while the first may still be answered, no other has room.
        """
        if failed:
            self._fleet.arrive(start.flight)
        if not self.may_resend(start, now_ms):
            return None
        self._fleet.heed(now_ms)
        member = self._fleet.other_than(start.replica)
        if member is not None:
            return self._start(self._lanes[start.variant], start.items, member, now_ms)
        return replace(start, flight=0, replica="") if failed else None

    @staticmethod
    def may_resend(start: Start[T], now_ms: float) -> bool:
        """Whether a batch that its replica failed is worth a second try: one of it may still be in time."""
        return now_ms + start.bound_ms <= max(item.deadline_ms for item in start.items)

    def lost(self, start: Start[T]) -> None:
        """A batch will not come back; nothing is learnt from it."""
        self._fleet.arrive(start.flight)

    def empty(self) -> list[T]:
        """Take out everything that waits."""
        items: list[T] = []
        for lane in self._lanes.values():
            items += lane.take(len(lane.waiting))
            while lane.late:
                items += lane.take_late()
        return items

    def stale_variant(self, now_ms: float, besides: Collection[str] = ()) -> str | None:
        """The variant that a probe should run now, if any: its estimate may be wrong for want of news.

        Not one of those ``besides``, which no probe can tell anything of.

        Estimates are corrected by what runs. Where they have become so bad that everything is refused,
        nothing runs, and only a probe can tell that the trouble is over. Busy lanes need none, but for a
        slow replica that nothing is given to.
        """
        lanes = [lane for name, lane in self._lanes.items() if name not in besides]
        if not lanes:
            return None
        lane = min(lanes, key=lambda x: x.learnt_ms)
        if self._fleet.unheard(now_ms, PROBE_MS):
            return lane.variant.name
        if self.in_flight or self.waiting:
            return None
        pessimism = max(x.pessimism for x in self._lanes.values())
        margin = self._promises.widths(math.inf, now_ms).margin
        in_doubt = doubtful(pessimism, self.hop.mean_ms, margin)
        due_ms = probe_after_ms(in_doubt, self._demand.lately(now_ms), lane.variant.profile.bound_ms(1))
        return lane.variant.name if now_ms - lane.learnt_ms >= due_ms else None
