"""Rescues in virtual time: `router.scheduling.rescue` on the simulated queue and the simulated replicas.

`router.service.rescuer` does the same with real ones.
"""

from __future__ import annotations

from collections.abc import Callable

from router.policy import OnlineSection
from router.scheduling.rescue import Rescue, Rescues
from router.scheduling.tuning import RESCUE_HEADS, RESCUE_INTERVAL_MS
from router.simulate.events import Events
from router.simulate.online import SimulatedDispatcher
from router.simulate.queued import QueueSide
from router.simulate.requests import BackgroundWork, Outcome
from workers.queue.contract import Done, Release


class SimulatedRescuer:
    """One router's rescues of one model; looks until ``wanted`` says that there is nothing to look for."""

    def __init__(
        self, front: SimulatedDispatcher, queue: QueueSide, section: OnlineSection, events: Events
    ) -> None:
        self._front, self._queue, self._events = front, queue, events
        self._rescues = Rescues(section.rescue.share, section.replicas, section.max_batch)

    def watch(self, wanted: Callable[[], bool]) -> None:
        """Look every `RESCUE_INTERVAL_MS` where anything waits."""
        if self._queue.reachable and self._queue.waiting_rows:
            self._look()
        if wanted():
            self._events.at(self._events.now_ms + RESCUE_INTERVAL_MS, self.watch, wanted)

    def _look(self) -> None:
        now_ms, queue = self._events.now_ms, self._queue
        look = self._rescues.begin(now_ms)
        if look is None:
            return
        stats = queue.look()
        batch, online = queue.load_of(stats), self._front.scheduler.load(now_ms)
        if not look.is_due(stats, batch, online, now_ms):
            return
        chosen = look.choose(queue.peek(RESCUE_HEADS), batch, online)
        for lease in queue.promote(chosen, look.lease_ms) if chosen else ():
            self._run(look.leased(lease))

    def _run(self, rescue: Rescue) -> None:
        lease, promotion, deadline_ms = rescue

        def over(outcome: Outcome) -> None:
            self._rescues.ended(rescue)
            if outcome == "answered":
                self._queue.settle(Done(lease.id, lease.token, b"", promotion.variant), promotion.variant)
            else:
                self._queue.settle(Release(lease.id, lease.token), None)

        self._front.put(BackgroundWork(lease.rows, self._events.now_ms, deadline_ms, over), promotion.variant)
