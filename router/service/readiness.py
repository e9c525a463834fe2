"""What is ready: the router, each model by what its routes need, and the queues.

A queue's server that is down takes no router out of a load balancer: online requests go on without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from router.policy import Policy
from router.service.requests import ServedModel

Queues = Literal["none", "known", "unknown"]


class Readiness:
    """``is_warm`` tells of a model whether its online variants have answered; ``clock`` is the service's."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        policy: Callable[[], Policy],
        is_warm: Callable[[str], bool],
        clock: Callable[[], float],
    ) -> None:
        self._models, self._policy, self._is_warm, self._clock = models, policy, is_warm, clock

    def server(self) -> bool:
        """Whether every online model is warm, whatever the queues do."""
        return all(self._is_warm(name) for name in self._models)

    def model(self, name: str) -> bool:
        """Whether the model is warm, and its queue known where no route leads it online."""
        known = self.queue(name) == "known" or not needs_queue(self._policy(), name)
        return known and self._is_warm(name)

    def queue(self, name: str) -> Queues:
        """Whether the statistics of the model's queue can be had; ``none``: it has no queue."""
        served = self._models[name]
        if served.queue is None:
            return "none"
        return "unknown" if served.known_stats(self._clock()) is None else "known"

    def queues(self) -> Queues:
        """The same of all queues: ``unknown`` where one is."""
        states = {self.queue(name) for name in self._models}
        return "unknown" if "unknown" in states else "known" if "known" in states else "none"


def needs_queue(policy: Policy, name: str) -> bool:
    """Whether nothing of the model can be answered without its queue."""
    model = policy.models[name]
    if model.batch is None or model.online is None:
        return model.online is None
    for route in policy.routes:
        if route.when.model is not None and name not in route.when.model.root:
            continue
        if route.to != "batch":
            return False
        if not any(condition is not route.when.model for condition in route.when.conditions):
            return True
    return False
