"""Rescues in virtual time: what `router.scheduling.rescue` chooses from the simulated queue runs on the
online replicas.

See `router.service.rescuer`, which does the same with a real queue: the choice, the quota and the lease are
the very same code.
"""

from __future__ import annotations

from collections.abc import Callable

from router.policy import OnlineSection
from router.scheduling.prediction import BatchLoad
from router.scheduling.rescue import LOOK_MS, Promotion, QueueView, Quota, choose, worth_a_look
from router.simulate.events import Events
from router.simulate.online import SimulatedDispatcher
from router.simulate.queued import QueueSide
from router.simulate.requests import BackgroundWork, Outcome
from workers.queue.contract import Done, Release
from workers.queue.job import Lease

_HEADS, _REMEMBERED = 64, 4096
#: Beyond its deadline a lease is of use only until a late answer is settled.
_LEASE_BEYOND_MS = 5_000


class SimulatedRescuer:
    """One router's rescues of one model; looks until ``wanted`` says that there is nothing to look for."""

    def __init__(
        self, front: SimulatedDispatcher, queue: QueueSide, section: OnlineSection, events: Events
    ) -> None:
        self._front, self._queue, self._events = front, queue, events
        self._quota = Quota(section.rescue.share, section.replicas, section.max_batch)
        self._tried: dict[str, None] = {}
        self.rescued = 0

    def watch(self, wanted: Callable[[], bool]) -> None:
        """Look every `LOOK_MS` where anything waits."""
        if self._queue.reachable and self._queue.waiting_rows:
            self._look()
        if wanted():
            self._events.at(self._events.now_ms + LOOK_MS, self.watch, wanted)

    def _look(self) -> None:
        now_ms, queue = self._events.now_ms, self._queue
        room = self._quota.room(now_ms)
        if room.run_ms <= 0.0 or room.rows <= 0:
            return
        stats = queue.look()
        due_ms = stats.earliest_deadline_ms
        if due_ms is None:
            return
        batch: BatchLoad = queue.load_of(stats)
        held = max(0, stats.rows - stats.waiting_rows - room.rows_in_flight)
        online = self._front.scheduler.load(now_ms)
        if not worth_a_look(float(due_ms - stats.now_ms), held, batch, online):
            return
        heads = queue.peek(_HEADS)
        chosen = choose(QueueView(heads, held, stats.now_ms), batch, online, room, self._tried)
        if not chosen:
            return
        slack_ms = {job.id: job.deadline_ms - stats.now_ms for job in heads}
        lease_ms = max(slack_ms[promotion.id] for promotion in chosen) + _LEASE_BEYOND_MS
        by_id = {promotion.id: promotion for promotion in chosen}
        for lease in queue.promote(list(by_id), lease_ms):
            self._tried[lease.id] = None
            self._quota.spend(by_id[lease.id])
            self._run(lease, by_id[lease.id], now_ms + slack_ms[lease.id])
        while len(self._tried) > _REMEMBERED:
            del self._tried[next(iter(self._tried))]

    def _run(self, lease: Lease, promotion: Promotion, deadline_ms: float) -> None:
        def over(outcome: Outcome) -> None:
            self._quota.completed(promotion)
            if outcome == "answered":
                self.rescued += 1
                self._queue.settle(Done(lease.id, lease.token, b"", promotion.variant), promotion.variant)
            else:
                self._queue.settle(Release(lease.id, lease.token), None)

        self._front.put(BackgroundWork(lease.rows, self._events.now_ms, deadline_ms, over), promotion.variant)
