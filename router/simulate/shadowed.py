"""Shadow runs in virtual time: what they take of the replicas' time. See `router.service.shadow`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from router.policy.sections import Shadow
from router.service.shadow import MAX_RUNS, deadline_ms
from router.simulate.online import SimulatedDispatcher
from router.simulate.requests import BackgroundWork, Outcome, SimulatedRequest


class Shadows:
    """One router's. ``draw`` gives random numbers in [0, 1); ``counted`` says how many shadows ran, were
    skipped or failed."""

    def __init__(self, draw: Callable[[], float], counted: Counter[str]) -> None:
        self._draw, self._counted, self._running = draw, counted, 0

    def answered(self, asked: SimulatedRequest, shadow: Shadow, front: SimulatedDispatcher) -> None:
        """A share of those that were answered online runs on the shadow's variant too."""
        if self._draw() >= shadow.share:
            return
        if self._running >= MAX_RUNS or shadow.variant not in front.variants:
            self._counted["skipped"] += 1
            return
        self._running += 1

        def over(outcome: Outcome) -> None:
            self._running -= 1
            how = {"answered": "ran", "failed": "failed"}.get(outcome, "skipped")
            self._counted[how] += 1

        now_ms = front.events.now_ms
        until_ms = deadline_ms(now_ms, asked.request.budget_ms)
        front.put(BackgroundWork(asked.rows, now_ms, until_ms, over), shadow.variant)
