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
from router.scheduling.headroom import PredictionTracker
from router.scheduling.in_flight import Hop
from router.scheduling.prediction import OnlineLoad
from router.scheduling.probing import PROBE_MS, doubtful, probe_after_ms
from router.scheduling.replica_set import UNTESTED_MS, ReplicaSet, ReplicaState
from router.scheduling.variant_queue import BatchDispatch, Form, Step, T, VariantQueue
from workers.batching import Idle, RunBatch, WaitUntil, latest_start_ms, next_batch

#: A batch led by a request with this many times the shortest budget asked for lately takes at most one
#: such part of that: it cannot be interrupted, and the next urgent request must find a replica in time.
_RELAXED = 4.0
#: A batch is sent to so many replicas at most.
TRIES = 2
#: A slow replica is taken although the answer comes a little later from it: what it does, the others need
#: not do.
_SOONER = 1.5
#: For so long after a request was degraded from it, a variant is chosen again with time to spare only.
_DEGRADED_MS = 1_000.0
#: A batch is overdue beyond explanation when it has taken this many times its bound, and so much more.
_SILENT_BOUNDS, _SILENT_MS = 4.0, 100.0


class Scheduler(Generic[T]):
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
        self._queues = {n: VariantQueue(v, max_batch, form) for n, v in variants.items()}
        self._max_batch, self._max_waiting = max_batch, max_waiting
        self._variants = dict(variants)
        self._replica_set = ReplicaSet(replicas)
        self.hop = Hop()
        best = next(iter(variants.values())).profile
        self._predictions = PredictionTracker(in_time, best.bound_ms(1))
        self._degraded_until_ms: dict[str, float] = {}
        self._urgency, self._demand = Urgency(), Demand()
        self._ran_late = False

    @property
    def waiting(self) -> int:
        """How many items wait; at most ``max_waiting``, if `room_for` is heeded."""
        return sum(len(queue.waiting) + len(queue.late) for queue in self._queues.values())

    @property
    def in_flight(self) -> int:
        return len(self._replica_set.in_flight)

    def set_replicas(self, names: Collection[str]) -> None:
        """These replicas live now; with none it is as with one, which will be back."""
        gone = self._replica_set.set_replicas(names)
        for queue in self._queues.values():
            queue.forget_pace(gone)

    def configure(self, max_batch: int, max_waiting: int, in_time: float) -> None:
        """Go on under other settings; what waits and what was learnt stays."""
        self._max_waiting = max_waiting
        self._predictions.aim(in_time)
        if max_batch != self._max_batch:
            self._max_batch = max_batch
            for queue in self._queues.values():
                queue.resize(max_batch, self.hop.mean_ms)

    def room_for(self, items: int) -> bool:
        return self.waiting + items <= self._max_waiting

    def load(self, now_ms: float, deadline_ms: float = math.inf, rows: int = 0) -> OnlineLoad:
        """The online side as `decide` sees it for a request of ``rows`` rows with this deadline.

        The request will be taken before whatever is less urgent, so only the rest counts as ahead of it.
        It is noted as asked for, whatever becomes of it. The cost does not grow with what waits.
        """
        waiting_ms, waits, count = 0.0, {}, 0
        replica_set, budget_ms = self._replica_set, deadline_ms - now_ms
        replica_set.mark_silent(now_ms)
        prediction_margin, headroom_ms = self._predictions.allowance(budget_ms, now_ms)
        self._urgency.note(budget_ms, now_ms)
        self._demand.note(rows, now_ms)
        replicas = replica_set.size
        worth = replicas / replica_set.rooms
        for name, queue in self._queues.items():
            if queue.rows:
                count += len(queue.waiting) + len(queue.late)
                ahead = queue.rows_before(deadline_ms)
                if ahead:
                    work_ms = queue.table.predict_ms(ahead) * worth
                    waiting_ms += work_ms
                    waits[name] = ahead, work_ms, queue.least_rows
        return OnlineLoad(
            self._variants,
            replicas,
            replica_set.busy_ms(now_ms),
            waiting_ms,
            self.hop.mean_ms,
            count >= self._max_waiting,
            prediction_margin,
            self._recently_degraded(now_ms) if self._degraded_until_ms else (),
            self._demand.rows_per_s,
            waits,
            self._max_batch,
            headroom_ms,
        )

    def _recently_degraded(self, now_ms: float) -> Collection[str]:
        until = self._degraded_until_ms
        for name in [name for name, at in until.items() if at <= now_ms]:
            del until[name]
        return until.keys()

    def note_degraded(self, variant: str, now_ms: float) -> None:
        """A request ran on a lesser variant because the work ahead left ``variant`` no time."""
        self._degraded_until_ms[variant] = now_ms + _DEGRADED_MS

    def add(self, variant: str, item: T) -> bool:
        """Let it wait; True where `step` may have something to do about it now.

        It has not where others wait already, more urgent ones, for a moment that `step` has named, and
        either every slot is taken or the batch has room for more.
        """
        queue = self._queues[variant]
        waited = bool(queue.waiting)
        queue.add(item)
        if not self._replica_set.has_room:
            return queue.waiting[0] is item
        return not waited or queue.rows >= self._max_batch or queue.waiting[0] is item

    def forget(self, variant: str, item: T) -> None:
        """Its caller has left: it takes no room and no part in a batch any more."""
        self._queues[variant].forget(item)

    def step(self, now_ms: float) -> Step[T]:
        """The next thing to do at ``now_ms``; to be asked again until it starts nothing."""
        hopeless: list[T] = []
        replica_set = self._replica_set
        replica_set.mark_silent(now_ms)
        while replica_set.has_room:
            live = [queue for queue in self._queues.values() if queue.waiting]
            queue = min(live, key=lambda x: x.waiting[0].deadline_ms) if live else None
            replica, first = self._where(queue, now_ms) if queue else (None, 0)
            plan = self._plan(queue, replica, first, now_ms, hopeless) if queue and replica else Idle(0)
            late = next((x for x in self._queues.values() if x.late), None)
            items: list[T] = []
            if late and not (self._ran_late and queue):
                # In turns: late work must not make the rest late, nor wait for ever behind it.
                self._ran_late, queue = True, late
                replica = replica_set.ready() or replica_set.ready_slow()[0]
                items = late.take_late()
            elif queue and isinstance(plan, RunBatch):
                self._ran_late = False
                items = queue.take(plan.count, first, plan.skipped)
            elif isinstance(plan, WaitUntil):
                return Step(hopeless, None, plan.until_ms)
            elif not queue or not replica:
                break
            if queue and replica and items:  # else all of their callers have left
                return Step(hopeless, self._start(queue, items, replica, now_ms))
        return Step(hopeless, None, self._give_up(now_ms, hopeless))

    def _where(self, queue: VariantQueue[T], now_ms: float) -> tuple[ReplicaState | None, int]:
        """Where the queue's next batch would be done first, and the place of the first that it would take.

        A replica that is slow takes only what it can do in time, and leaves what is more urgent to the
        others. None where waiting for one of them is better.
        """
        replica_set = self._replica_set
        usual, slower = replica_set.ready(), replica_set.ready_slow()
        if not slower:
            return usual, 0
        rows, found = min(queue.rows, self._max_batch), usual or replica_set.full()
        best_ms = math.inf
        if found is not None:
            # Behind what waits before it: an idle slow replica may still do the last of it sooner.
            own_ms, all_ms = (
                queue.table.predict_ms(rows),
                queue.table.predict_ms(queue.rows) / replica_set.usual,
            )
            best_ms = self._begins_ms(found, now_ms) + _SOONER * max(own_ms, all_ms)
        first = 0
        for replica in slower:
            begins_ms, table = self._begins_ms(replica, now_ms), queue.pace_of(replica).table
            place = queue.feasible_from(begins_ms, table)
            if place is None:
                continue
            has_untested = not replica.in_flight and now_ms - replica.answered_ms >= UNTESTED_MS
            if has_untested or begins_ms + table.predict_ms(rows) < best_ms:
                best_ms, found, first = begins_ms + table.predict_ms(rows), replica, place
                if has_untested:
                    break
        return (found if found is usual or found in slower else None), first

    def _begins_ms(self, replica: ReplicaState, now_ms: float) -> float:
        """When a batch that is sent now would begin there."""
        return max(now_ms + self.hop.mean_ms / 2.0 + replica.wait_ms, replica.busy_until_ms)

    def _give_up(self, now_ms: float, hopeless: list[T]) -> float | None:
        """With every slot taken: drop those whom even a slot at this moment would not help any more.

        Their callers are told now, not when a replica that died or hangs has been replaced. Gives when
        to look again; None where nobody waits whose deadline will pass.
        """
        again_ms = math.inf
        for queue in self._queues.values():
            while queue.waiting:
                latest_ms = latest_start_ms(queue.waiting[0], queue.table, self.hop.mean_ms / 2.0)
                if now_ms < latest_ms:
                    again_ms = min(again_ms, latest_ms)
                    break
                self._drop(queue, 1, now_ms, hopeless)
        return None if again_ms == math.inf else again_ms

    def _plan(
        self, queue: VariantQueue[T], replica: ReplicaState, first: int, now_ms: float, hopeless: list[T]
    ) -> RunBatch | WaitUntil | Idle:
        """What ``replica`` should do for the queue now; the queue's hopeless heads are out of it then."""
        lead_ms = self.hop.mean_ms / 2.0 + replica.wait_ms
        if replica.slow:
            has_untested = now_ms - replica.answered_ms >= UNTESTED_MS
            return next_batch(
                queue.waiting[first : first + self._max_batch + 1],
                queue.pace_of(replica).table,
                now_ms,
                busy_until_ms=replica.busy_until_ms,
                lead_ms=lead_ms,
                most_rows=1 if has_untested else None,
                form=queue.form,
            )
        plan = next_batch(
            queue.waiting,
            queue.table,
            now_ms,
            busy_until_ms=replica.busy_until_ms,
            lead_ms=lead_ms,
            least_rows=queue.least_rows,
            waiting_rows=queue.rows,
            form_rows=queue.form_rows if queue.form is not None else None,
            most_rows=self._most_rows(queue, self._begins_ms(replica, now_ms)),
            form=queue.form,
        )
        self._drop(queue, plan.dropped, now_ms, hopeless)
        if isinstance(plan, RunBatch) and now_ms < replica.held_until_ms and plan.rows < self._max_batch:
            leader = queue.waiting[0]
            due_ms = leader.deadline_ms
            if leader.predicted_ms > 0.0:
                due_ms = min(due_ms, leader.arrived_ms + leader.predicted_ms)
            until_ms = min(replica.held_until_ms, due_ms - plan.bound_ms - lead_ms)
            if until_ms > now_ms:
                return WaitUntil(until_ms, 0)
        return plan

    def _drop(self, queue: VariantQueue[T], count: int, now_ms: float, hopeless: list[T]) -> None:
        """Take out the first, hopeless as they are; those that are to be run all the same are set aside."""
        dropped = queue.take(count)
        gone = [item for item in dropped if item.droppable]
        hopeless += gone
        self._predictions.dropped(gone, now_ms)
        queue.set_aside([item for item in dropped if not item.droppable])

    def _most_rows(self, queue: VariantQueue[T], starts_ms: float) -> int | None:
        """The largest batch that keeps its leader's promise and leaves others a chance; None: any.

        A batch that were filled up to the deadline would make every answer late against its prediction,
        and the next predictions wide. And it cannot be interrupted: where others ask with much shorter
        budgets, one led by a relaxed request must not take all of theirs.
        """
        leader, most = queue.waiting[0], None
        if leader.predicted_ms > 0.0:
            due_ms = leader.arrived_ms + leader.predicted_ms
            most = max(queue.least_rows, queue.table.largest(due_ms - starts_ms))
        if leader.deadline_ms - leader.arrived_ms >= _RELAXED * self._urgency.shortest_ms:
            fair = max(queue.efficient_rows, queue.table.largest(self._urgency.shortest_ms / _RELAXED))
            most = fair if most is None else min(fair, most)
        return most

    def _start(
        self, queue: VariantQueue[T], items: list[T], replica: ReplicaState, now_ms: float
    ) -> BatchDispatch[T]:
        rows, pace = sum(item.rows for item in items), queue.pace_of(replica)
        # A call keeps both processes busy for about the hop, however short the model: sending more often
        # than that makes many small batches out of one and answers nobody sooner.
        busy_ms = max(pace.profile.predict_ms(rows), self.hop.mean_ms)
        end_ms, bound_ms = self._begins_ms(replica, now_ms) + busy_ms, pace.table.bound_ms(rows)
        patience_ms = _SILENT_MS + _SILENT_BOUNDS * (bound_ms + replica.wait_ms)
        number = self._replica_set.dispatch(replica, now_ms, end_ms, patience_ms)
        return BatchDispatch(
            number, queue.variant.name, items, rows, bound_ms, replica.name, end_ms + patience_ms
        )

    def completed(
        self,
        start: BatchDispatch[T],
        now_ms: float,
        run_ms: float,
        wait_ms: float,
        ran_ms: float | None = None,
        first_answer: bool = True,
    ) -> None:
        """A batch is back: it ran ``run_ms`` after ``wait_ms`` behind another; the rest was the hop.

        ``ran_ms`` is what its replica has run so far in all, for every router. ``first_answer``: its callers
        have no answer yet from another attempt.
        """
        batch = self._replica_set.complete(start.batch_id)
        if batch is None:
            return
        replica, queue = batch.replica, self._queues[start.variant]
        if not self._replica_set.answered(batch, now_ms):
            self.hop.learn(max(0.0, now_ms - batch.sent_ms - wait_ms - run_ms))
        self._replica_set.learn(batch, now_ms, run_ms, wait_ms, self.hop.mean_ms, ran_ms)
        if first_answer:
            self._predictions.answered(start.items, now_ms)
        if self._replica_set.pace(replica, queue.slower(start.rows, run_ms)) and not replica.slow:
            for each in self._queues.values():
                each.forget_pace((replica.name,))
        if queue.learn(replica, start.rows, run_ms, now_ms, self.hop.mean_ms):
            self._variants = {name: x.variant for name, x in self._queues.items()}

    def completed_untimed(self, start: BatchDispatch[T], now_ms: float) -> None:
        """A batch is back in a way from which nothing is learnt but that its replica answers."""
        batch = self._replica_set.complete(start.batch_id)
        if batch is not None:
            self._replica_set.answered(batch, now_ms)

    def retry(self, start: BatchDispatch[T], now_ms: float, failed: bool) -> BatchDispatch[T] | None:
        """A second try of a batch that ``failed``, or that its replica keeps to itself: on another replica.

        None where it would come too late, or, while the first may still be answered, no other has room.
        """
        if failed:
            self._replica_set.complete(start.batch_id)
        if not self.may_resend(start, now_ms):
            return None
        self._replica_set.mark_silent(now_ms)
        replica = self._replica_set.other_than(start.replica)
        if replica is not None:
            return self._start(self._queues[start.variant], start.items, replica, now_ms)
        return replace(start, batch_id=0, replica="") if failed else None

    @staticmethod
    def may_resend(start: BatchDispatch[T], now_ms: float) -> bool:
        """Whether a batch that its replica failed is worth a second try: one of it may still be in time."""
        return now_ms + start.bound_ms <= max(item.deadline_ms for item in start.items)

    def abandon(self, start: BatchDispatch[T]) -> None:
        """A batch will not come back; nothing is learnt from it."""
        self._replica_set.complete(start.batch_id)

    def empty(self) -> list[T]:
        """Take out everything that waits."""
        items: list[T] = []
        for queue in self._queues.values():
            items += queue.take(len(queue.waiting))
            while queue.late:
                items += queue.take_late()
        return items

    def stale_variant(self, now_ms: float, besides: Collection[str] = ()) -> str | None:
        """The variant that a probe should run now, if any: its estimate may be wrong for want of news.

        Not one of those ``besides``, which no probe can tell anything of.

        Estimates are corrected by what runs. Where they have become so bad that everything is refused,
        nothing runs, and only a probe can tell that the trouble is over. Busy variants need none, but for a
        slow replica that nothing is given to.
        """
        queues = [queue for name, queue in self._queues.items() if name not in besides]
        if not queues:
            return None
        queue = min(queues, key=lambda x: x.learnt_ms)
        if self._replica_set.has_untested(now_ms, PROBE_MS):
            return queue.variant.name
        if self.in_flight or self.waiting:
            return None
        pessimism = max(x.pessimism for x in self._queues.values())
        prediction_margin = self._predictions.allowance(math.inf, now_ms).prediction_margin
        in_doubt = doubtful(pessimism, self.hop.mean_ms, prediction_margin)
        due_ms = probe_after_ms(in_doubt, self._demand.lately(now_ms), queue.variant.profile.bound_ms(1))
        return queue.variant.name if now_ms - queue.learnt_ms >= due_ms else None
