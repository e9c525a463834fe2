"""The simulation: arrivals in virtual time, through `router.scheduling.admission`, into both sides of every
model.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from router.policy import OnlineSection, Policy
from router.policy.facts import MeasuredVariant
from router.scheduling.admission import Enqueue, Reject, RunOnline, decide
from router.scheduling.prediction import ModelLoad
from router.simulate import door
from router.simulate.door import Door
from router.simulate.door import SimulationError as SimulationError
from router.simulate.events import Events
from router.simulate.faults import Fault
from router.simulate.online import OnlineSide, SimulatedDispatcher
from router.simulate.queued import QueueSide
from router.simulate.requests import Outcome, SimulatedRequest
from router.simulate.rescued import SimulatedRescuer
from router.simulate.result import LoadSample, SimulationResult
from router.simulate.shadowed import Shadows
from router.simulate.timing import Costs, Timing
from router.simulate.workload import Request
from workers.queue.settings import settings_from

Variants = Mapping[str, Mapping[str, MeasuredVariant]]
_SAMPLES = 400
_PROBE_EVERY_MS = 100.0
#: Results need not stay: nobody asks for them again.
_KEEP_MS = 60_000


@dataclass(frozen=True, slots=True)
class Moment:
    """A deployment at one time: what its requests cost, and the variants with the times that they had."""

    costs: Costs
    variants: Variants


@dataclass(frozen=True, slots=True)
class Settings:
    """What a simulation needs beside policy and requests. ``moments`` follow each other while requests
    arrive, each for an equal part of that time; the routers know nothing of them."""

    seed: int = 7
    costs: Costs = field(default_factory=Costs)
    faults: tuple[Fault, ...] = ()
    moments: tuple[Moment, ...] = ()


class _Sides:
    """One model."""

    __slots__ = ("batch", "online")

    def __init__(self, online: OnlineSide | None, batch: QueueSide | None) -> None:
        self.online, self.batch = online, batch


class Simulation:
    """One run: ``Simulation(policy, variants, settings).run(requests)``. Equal input gives equal output."""

    def __init__(self, policy: Policy, variants: Variants, settings: Settings | None = None) -> None:
        self._policy, self._variants, self._settings = policy, variants, settings or Settings()
        self._events = Events()
        self._result = SimulationResult(self._settings.seed)
        draw = random.Random(self._settings.seed)
        timing = self._timing = Timing(self._settings.costs, random.Random(draw.random()))
        self._sides: dict[str, _Sides] = {}
        self._rescuers: list[tuple[SimulatedRescuer, QueueSide]] = []
        for name, model in policy.models.items():
            online = batch = None
            if model.online:
                if model.online.in_router and self._settings.costs.routers > 1:
                    raise SimulationError(
                        f"models.{name}.online.in_router: of several routers each has a copy, and here "
                        "they would share one; leave --routers out"
                    )
                online = OnlineSide(
                    model.online,
                    variants[name],
                    self._events,
                    timing,
                    self._end,
                    self._violated,
                    self._settings.costs.routers,
                )
            if model.batch:
                batch = QueueSide(
                    name,
                    model.batch,
                    variants[name],
                    settings_from({**policy.queue_settings, "keep_ms": _KEEP_MS}),
                    self._events,
                    timing,
                    random.Random(draw.random()),
                    self._end,
                    self._violated,
                )
            self._sides[name] = _Sides(online, batch)
            self._add_rescuers(model.online, online, batch)
        self._wire_ms = self._settings.costs.wire_ms
        drawn = door.routing_draws(self._settings.seed).random
        routers = range(self._settings.costs.routers)
        self._doors = [Door(policy, len(routers), drawn) for _ in routers]
        self._shadows = [Shadows(drawn, self._result.shadows) for _ in routers]
        self._result.not_played = door.not_played(policy)
        self._shadowed = policy.shadows
        self._open = 0
        self._over = False
        self._busy_ms = (0.0, 0.0)

    def _add_rescuers(
        self, section: OnlineSection | None, online: OnlineSide | None, batch: QueueSide | None
    ) -> None:
        if section and online and batch and section.rescue.share:
            for front in online.routers:
                self._rescuers.append((SimulatedRescuer(front, batch, section, self._events), batch))

    def run(self, requests: Sequence[Request]) -> SimulationResult:
        """Let all of them arrive, and go on until the last has ended."""
        events, costs = self._events, self._settings.costs
        door.check(self._policy, self._variants, requests)
        self._result.by_tenant = any(request.tenant for request in requests)
        self._plan_faults()
        span_ms = requests[-1].at_ms if requests else 0.0
        for number, moment in enumerate(self._settings.moments):
            events.at(span_ms * number / len(self._settings.moments), self._turn, moment)
        self._sample(max(100.0, span_ms / _SAMPLES), span_ms)
        self._probe([sides.online for sides in self._sides.values() if sides.online])
        for sides in self._sides.values():
            if sides.batch:
                sides.batch.watch(lambda: not self._over)
        for rescuer, queue in self._rescuers:
            rescuer.watch(partial(self._may_rescue, queue))
        door_ms, free_ms = costs.door_ms / costs.routers, 0.0
        for number, request in enumerate(requests):
            # A router's process takes one request at a time.
            free_ms = max(free_ms, request.at_ms) + door_ms
            while events.next_ms <= free_ms:
                events.step()
            events.now_ms = free_ms
            self._arrive(request, number % costs.routers)
        self._over = True
        while self._open and events.next_ms < float("inf"):
            events.step()
        if self._open:
            self._violated(f"{self._open} requests were accepted and never ended")
        return self._finish(requests)

    def _may_rescue(self, queue: QueueSide) -> bool:
        return not self._over or queue.open

    def _probe(self, online: Sequence[OnlineSide]) -> None:
        for side in online:
            side.probe()
        if not self._over:
            self._events.at(self._events.now_ms + _PROBE_EVERY_MS, self._probe, online)

    def _plan_faults(self) -> None:
        for fault in self._settings.faults:
            sides = self._sides.get(fault.model)
            side: OnlineSide | QueueSide | None = None
            if sides is not None:
                side = sides.online if fault.side == "online" else sides.batch
            if side is None or (fault.kind == "stop" and side is not sides.online):  # type: ignore[union-attr]
                raise SimulationError(
                    f"a fault of {fault.model}.{fault.side}, which the policy does not have"
                )
            self._events.at(fault.at_ms, side.suffer, fault, self._settings.costs.restart_ms)

    def _turn(self, moment: Moment) -> None:
        now = {
            id(variant): moment.variants[model][name]
            for model, found in self._variants.items()
            for name, variant in found.items()
        }
        self._timing.set_moment(moment.costs, now)

    def _arrive(self, request: Request, router: int) -> None:
        sides, now_ms = self._sides[request.model], self._events.now_ms
        front = sides.online.routers[router] if sides.online else None

        def load() -> ModelLoad:
            return ModelLoad(
                front.load(now_ms + request.budget_ms, request.row_cost or request.rows) if front else None,
                sides.batch.load(router) if sides.batch else None,
            )

        asked = SimulatedRequest(request, now_ms, router)
        self._open += 1
        decision = self._doors[router].take(asked, load, now_ms)
        if decision is None:
            self._end(asked, "refused")
            return
        asked.route = decision.route
        if isinstance(decision, RunOnline) and front:
            asked.predicted_ms = decision.predicted_ms
            front.run(asked, decision)
        elif isinstance(decision, Enqueue) and sides.batch:
            # Where nothing is predicted, nothing can be exceeded.
            asked.predicted_ms = math.inf if decision.predicted_ms is None else decision.predicted_ms
            sides.batch.submit(asked, decision, partial(self._without_queue, asked, decision, front))
        else:
            asked.refused_for = decision.kind if isinstance(decision, Reject) else "unserved"
            self._end(asked, "refused")

    def _without_queue(
        self, asked: SimulatedRequest, decision: Enqueue, front: SimulatedDispatcher | None
    ) -> None:
        """What the service does with a request that the queue did not take."""
        now_ms, spent_ms = self._events.now_ms, self._events.now_ms - asked.arrived_ms
        if decision.patience_ms is not None and front and asked.facts:
            load = front.load(asked.deadline_ms, asked.request.row_cost or asked.request.rows)
            facts = asked.facts._replace(spent_ms=asked.facts.spent_ms + spent_ms)
            instead = decide(facts, self._policy, ModelLoad(load, None), now_ms)
            if isinstance(instead, RunOnline):
                asked.predicted_ms = spent_ms + instead.predicted_ms
                front.run(asked, instead)
                return
        self._end(asked, "failed")

    def _end(self, asked: SimulatedRequest, outcome: Outcome) -> None:
        if asked.ended is not None:
            self._violated(f"a request ended twice: {asked.ended}, then {outcome}")
            return
        asked.ended = outcome
        asked.let_go()
        self._open -= 1
        request, now_ms = asked.request, self._events.now_ms
        latency_ms = now_ms - request.at_ms + self._wire_ms
        for tally in self._result.tallies(asked.route, request.tenant):
            if outcome == "answered":
                held = now_ms - asked.arrived_ms <= asked.predicted_ms
                tally.answered(latency_ms, latency_ms <= request.budget_ms, asked.variant, asked.drop, held)
            else:
                tally.ended(outcome, latency_ms, asked.refused_for)
        shadow, online = self._shadowed.get(asked.route), self._sides[request.model].online
        if shadow is not None and online is not None and asked.online and outcome == "answered":
            self._shadows[asked.router].answered(asked, shadow, online.routers[asked.router])

    def _violated(self, what: str) -> None:
        if len(self._result.violations) < 100:
            self._result.violations.append(f"at {self._events.now_ms:.3f} ms: {what}")

    def _sample(self, every_ms: float, span_ms: float) -> None:
        """The system as it is now, and again until the arrivals are over."""
        online = [s.online for s in self._sides.values() if s.online]
        batch = [s.batch for s in self._sides.values() if s.batch]
        before, self._busy_ms = (
            self._busy_ms,
            (
                sum(side.busy_ms for side in online),
                sum(side.busy_ms for side in batch),
            ),
        )
        self._result.samples.append(
            LoadSample(
                self._events.now_ms / 1_000.0,
                sum(side.waiting for side in online),
                sum(side.waiting_rows for side in batch),
                self._share(self._busy_ms[0] - before[0], every_ms, sum(side.size for side in online)),
                self._share(self._busy_ms[1] - before[1], every_ms, sum(side.size for side in batch)),
            )
        )
        if self._events.now_ms < span_ms:
            self._events.at(self._events.now_ms + every_ms, self._sample, every_ms, span_ms)

    @staticmethod
    def _share(busy_ms: float, every_ms: float, size: int) -> float:
        # A batch counts when it is sent, so a long one may overfill its interval.
        return min(1.0, busy_ms / (every_ms * size)) if size else 0.0

    def _finish(self, requests: Iterable[Request]) -> SimulationResult:
        result, seconds = self._result, self._events.now_ms / 1_000.0
        result.seconds = seconds
        for name, sides in self._sides.items():
            for kind, side in (("online", sides.online), ("batch", sides.batch)):
                if side is not None:
                    label = f"{name} {kind}"
                    result.busy_s[label] = side.busy_ms / 1_000.0
                    result.capacity_s[label] = side.provided_ms / 1_000.0
                    result.batches[label], result.batch_rows[label] = side.batches, side.batch_rows
        return result
