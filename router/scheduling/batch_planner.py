"""Where the next batch should run, and what should be in it. Pure: it changes neither queues nor replicas."""

from __future__ import annotations

import math

from router.scheduling.demand import Urgency
from router.scheduling.in_flight import Hop
from router.scheduling.replica_set import ReplicaSet
from router.scheduling.replica_state import ReplicaState
from router.scheduling.tuning import RELAXED_BUDGETS, SLOW_REPLICA_BONUS, UNTESTED_MS
from router.scheduling.variant_queue import T, VariantQueue
from workers.batching import Idle, RunBatch, WaitUntil, next_batch


class BatchPlanner:
    """Plans for one scheduler, whose replicas, hop and urgency it reads."""

    def __init__(self, replica_set: ReplicaSet, hop: Hop, urgency: Urgency, max_batch: int) -> None:
        self._replica_set, self._hop, self._urgency = replica_set, hop, urgency
        self.max_batch = max_batch

    def place(self, queue: VariantQueue[T], now_ms: float) -> tuple[ReplicaState | None, int]:
        """Where the queue's next batch would be done first, and the place of the first that it would take.

        A replica that is slow takes only what it can do in time, and leaves what is more urgent to the
        others. None where waiting for one of them is better.
        """
        replica_set = self._replica_set
        usual, slower = replica_set.ready(), replica_set.ready_slow()
        if not slower:
            return usual, 0
        rows, found = min(queue.rows, self.max_batch), usual or replica_set.full()
        best_ms = math.inf
        if found is not None:
            # Behind what waits before it: an idle slow replica may still do the last of it sooner.
            own_ms, all_ms = (
                queue.table.predict_ms(rows),
                queue.table.predict_ms(queue.rows) / replica_set.usual,
            )
            best_ms = self.begins_ms(found, now_ms) + SLOW_REPLICA_BONUS * max(own_ms, all_ms)
        first = 0
        for replica in slower:
            begins_ms, table = self.begins_ms(replica, now_ms), queue.pace_of(replica).table
            place = queue.feasible_from(begins_ms, table)
            if place is None:
                continue
            has_untested = not replica.in_flight and now_ms - replica.answered_ms >= UNTESTED_MS
            if has_untested or begins_ms + table.predict_ms(rows) < best_ms:
                best_ms, found, first = begins_ms + table.predict_ms(rows), replica, place
                if has_untested:
                    break
        return (found if found is usual or found in slower else None), first

    def begins_ms(self, replica: ReplicaState, now_ms: float) -> float:
        """When a batch that is sent now would begin there."""
        return max(now_ms + self._hop.mean_ms / 2.0 + replica.wait_ms, replica.busy_until_ms)

    def plan(
        self, queue: VariantQueue[T], replica: ReplicaState, first: int, now_ms: float
    ) -> RunBatch | WaitUntil | Idle:
        """What ``replica`` should do now of what waits in ``queue``, from place ``first`` on."""
        lead_ms = self._hop.mean_ms / 2.0 + replica.wait_ms
        if replica.slow:
            has_untested = now_ms - replica.answered_ms >= UNTESTED_MS
            return next_batch(
                queue.waiting[first : first + self.max_batch + 1],
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
            most_rows=self._most_rows(queue, self.begins_ms(replica, now_ms)),
            form=queue.form,
        )
        if isinstance(plan, RunBatch) and now_ms < replica.held_until_ms and plan.rows < self.max_batch:
            leader = queue.waiting[plan.dropped]
            due_ms = leader.deadline_ms
            if leader.predicted_ms > 0.0:
                due_ms = min(due_ms, leader.arrived_ms + leader.predicted_ms)
            until_ms = min(replica.held_until_ms, due_ms - plan.bound_ms - lead_ms)
            if until_ms > now_ms:
                return WaitUntil(until_ms, plan.dropped)
        return plan

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
        if leader.deadline_ms - leader.arrived_ms >= RELAXED_BUDGETS * self._urgency.shortest_ms:
            fair = max(queue.efficient_rows, queue.table.largest(self._urgency.shortest_ms / RELAXED_BUDGETS))
            most = fair if most is None else min(fair, most)
        return most
