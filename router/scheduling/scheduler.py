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
from router.scheduling.actions import Action, BatchDispatch, Drop, SendBatch, WakeAt
from router.scheduling.batch_planner import BatchPlanner
from router.scheduling.demand import Demand, Urgency
from router.scheduling.headroom import PredictionTracker
from router.scheduling.in_flight import Hop
from router.scheduling.prediction import OnlineLoad
from router.scheduling.probing import doubtful, probe_after_ms
from router.scheduling.replica_set import ReplicaSet
from router.scheduling.replica_state import ReplicaState
from router.scheduling.tuning import PROBE_MS, RECENTLY_DEGRADED_MS, SILENT_BOUNDS, SILENT_MS
from router.scheduling.variant_queue import Form, T, VariantQueue
from workers.batching import Idle, RunBatch, WaitUntil, latest_start_ms


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
        self._planner = BatchPlanner(self._replica_set, self.hop, self._urgency, max_batch)
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
            self._max_batch = self._planner.max_batch = max_batch
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
        self._degraded_until_ms[variant] = now_ms + RECENTLY_DEGRADED_MS

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

    def step(self, now_ms: float) -> list[Action[T]]:
        """Everything to do at ``now_ms``, in this order.

        Without a `WakeAt` at the end there is nothing more to do before an item is added or a batch ends.
        """
        actions: list[Action[T]] = []
        self._replica_set.mark_silent(now_ms)
        while self._replica_set.has_room:
            live = [queue for queue in self._queues.values() if queue.waiting]
            queue = min(live, key=lambda x: x.waiting[0].deadline_ms) if live else None
            replica, first = self._planner.place(queue, now_ms) if queue else (None, 0)
            plan: RunBatch | WaitUntil | Idle = Idle(0)
            if queue and replica:
                plan = self._planner.plan(queue, replica, first, now_ms)
                if not replica.slow:
                    self._drop(queue, plan.dropped, now_ms, actions)
            late = next((x for x in self._queues.values() if x.late), None)
            if late and not (self._ran_late and queue):
                # In turns: late work must not make the rest late, nor wait for ever behind it.
                self._ran_late = True
                replica = self._replica_set.ready() or self._replica_set.ready_slow()[0]
                self._send(late, late.take_late(), replica, now_ms, actions)
            elif queue and replica and isinstance(plan, RunBatch):
                self._ran_late = False
                items = queue.take(plan.count, first, plan.skipped)
                self._send(queue, items, replica, now_ms, actions)
            elif isinstance(plan, WaitUntil):
                actions.append(WakeAt(plan.until_ms))
                return actions
            elif not queue or not replica:
                break
        self._drop_hopeless(now_ms, actions)
        return actions

    def _send(
        self,
        queue: VariantQueue[T],
        items: list[T],
        replica: ReplicaState,
        now_ms: float,
        actions: list[Action[T]],
    ) -> None:
        if items:  # else all of their callers have left
            actions.append(SendBatch(self._dispatch(queue, items, replica, now_ms)))

    def _drop_hopeless(self, now_ms: float, actions: list[Action[T]]) -> None:
        """With every slot taken: drop what even a slot at this moment would not help any more.

        Their callers hear of it now, not when a replica that died or hangs has been replaced. Ends with when
        to look again, where something waits whose deadline will pass.
        """
        again_ms = math.inf
        for queue in self._queues.values():
            while queue.waiting:
                latest_ms = latest_start_ms(queue.waiting[0], queue.table, self.hop.mean_ms / 2.0)
                if now_ms < latest_ms:
                    again_ms = min(again_ms, latest_ms)
                    break
                self._drop(queue, 1, now_ms, actions)
        if again_ms < math.inf:
            actions.append(WakeAt(again_ms))

    def _drop(self, queue: VariantQueue[T], count: int, now_ms: float, actions: list[Action[T]]) -> None:
        """Take out the first, hopeless as they are; those that are to be run all the same are set aside."""
        taken = queue.take(count)
        dropped = [item for item in taken if item.droppable]
        if dropped:
            actions.append(Drop(dropped))
            self._predictions.dropped(dropped, now_ms)
        queue.set_aside([item for item in taken if not item.droppable])

    def _dispatch(
        self, queue: VariantQueue[T], items: list[T], replica: ReplicaState, now_ms: float
    ) -> BatchDispatch[T]:
        rows, pace = sum(item.rows for item in items), queue.pace_of(replica)
        # A call keeps both processes busy for about the hop, however short the model: sending more often
        # than that makes many small batches out of one and answers nobody sooner.
        busy_ms = max(pace.profile.predict_ms(rows), self.hop.mean_ms)
        end_ms, bound_ms = self._planner.begins_ms(replica, now_ms) + busy_ms, pace.table.bound_ms(rows)
        patience_ms = SILENT_MS + SILENT_BOUNDS * (bound_ms + replica.wait_ms)
        number = self._replica_set.dispatch(replica, now_ms, end_ms, patience_ms)
        return BatchDispatch(
            number, queue.variant.name, items, rows, bound_ms, replica.name, end_ms + patience_ms
        )

    def completed(
        self,
        batch: BatchDispatch[T],
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
        sent = self._replica_set.complete(batch.batch_id)
        if sent is None:
            return
        replica, queue = sent.replica, self._queues[batch.variant]
        if not self._replica_set.answered(sent, now_ms):
            self.hop.learn(max(0.0, now_ms - sent.sent_ms - wait_ms - run_ms))
        self._replica_set.learn(sent, now_ms, run_ms, wait_ms, self.hop.mean_ms, ran_ms)
        if first_answer:
            self._predictions.answered(batch.items, now_ms)
        if self._replica_set.pace(replica, queue.slower(batch.rows, run_ms)) and not replica.slow:
            for each in self._queues.values():
                each.forget_pace((replica.name,))
        if queue.learn(replica, batch.rows, run_ms, now_ms, self.hop.mean_ms):
            self._variants = {name: x.variant for name, x in self._queues.items()}

    def completed_untimed(self, batch: BatchDispatch[T], now_ms: float) -> None:
        """A batch is back in a way from which nothing is learnt but that its replica answers."""
        sent = self._replica_set.complete(batch.batch_id)
        if sent is not None:
            self._replica_set.answered(sent, now_ms)

    def retry(self, batch: BatchDispatch[T], now_ms: float, failed: bool) -> BatchDispatch[T] | None:
        """Another attempt at a batch that ``failed`` or is overdue, on another replica.

        None where it would come too late, or, while the first may still be answered, no other has room.
        """
        if failed:
            self._replica_set.complete(batch.batch_id)
        if now_ms + batch.bound_ms > max(item.deadline_ms for item in batch.items):
            return None
        self._replica_set.mark_silent(now_ms)
        replica = self._replica_set.other_than(batch.replica)
        if replica is not None:
            return self._dispatch(self._queues[batch.variant], batch.items, replica, now_ms)
        return replace(batch, batch_id=0, replica="") if failed else None

    def abandon(self, batch: BatchDispatch[T]) -> None:
        """A batch will not come back; nothing is learnt from it."""
        self._replica_set.complete(batch.batch_id)

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
