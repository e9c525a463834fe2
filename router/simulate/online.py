"""The online side of one model in virtual time: the router's own lanes in front of simulated replicas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from router.decide import RunOnline
from router.estimate import OnlineLoad, Variant
from router.lanes import Lanes, Start
from router.policy import Online
from router.simulate.asked import Asked, Item, Outcome, Part, Probe
from router.simulate.events import Events
from router.simulate.faults import Fault
from router.simulate.timing import Timing

#: How long it takes until the call to a replica that has died comes back with an error.
_NOTICED_MS = 20.0
#: A request that is given up on is given up on by its deadline.
_TOLD_WITHIN_MS = 1.0


@dataclass(slots=True)
class _Replica:
    """``epoch`` counts its lives: what was sent to an earlier one is lost."""

    free_at_ms: float = 0.0
    up_at_ms: float = 0.0
    epoch: int = 0
    factor: float = 1.0
    flights: dict[int, tuple[Start[Item], int]] = field(default_factory=dict)


class OnlineSide:
    """Runs what `decide` sends here. ``end(asked, outcome)`` is told once of each request."""

    def __init__(
        self,
        section: Online,
        variants: Mapping[str, Variant],
        events: Events,
        timing: Timing,
        end: Callable[[Asked, Outcome], None],
        violated: Callable[[str], None],
    ) -> None:
        best_first = sorted(section.variants, key=lambda name: variants[name].quality_drop)
        self._variants = {name: variants[name] for name in best_first}
        self._lanes: Lanes[Item] = Lanes(
            self._variants,
            replicas=section.replicas,
            max_batch=section.max_batch,
            max_waiting=section.max_waiting,
        )
        self._max_batch = section.max_batch
        self._replicas = [_Replica() for _ in range(section.replicas)]
        self._by_open: list[dict[int, _Replica]] = [{id(replica): replica for replica in self._replicas}]
        self._events, self._timing = events, timing
        self._end, self._violated = end, violated
        self._timer = 0
        self.busy_ms = 0.0
        self.batches = 0
        self.batch_rows = 0

    @property
    def waiting(self) -> int:
        return self._lanes.waiting

    @property
    def size(self) -> int:
        """How many replicas there are."""
        return len(self._replicas)

    def load(self, deadline_ms: float, rows: int) -> OnlineLoad:
        return self._lanes.load(self._events.now_ms, deadline_ms, rows)

    def probe(self) -> None:
        """What the router does ten times a second: a row of zeros where an estimate may be out of date."""
        variant = self._lanes.stale_variant(self._events.now_ms)
        if variant is not None and self._lanes.add(variant, Probe()):
            self._pump()

    def run(self, asked: Asked, decision: RunOnline) -> None:
        """What the dispatcher's ``run`` does with a decision."""
        asked.variant, asked.drop = decision.variant, self._variants[decision.variant].quality_drop
        asked.droppable = decision.droppable
        if decision.passed_over is not None:
            self._lanes.pass_over(decision.passed_over, self._events.now_ms)
        parts: list[Item] = [asked]
        if asked.rows > self._max_batch:
            sizes = [min(self._max_batch, asked.rows - at) for at in range(0, asked.rows, self._max_batch)]
            parts, asked.parts = [Part(asked, size) for size in sizes], len(sizes)
        if not self._lanes.room_for(len(parts)):
            self._end(asked, "refused")
            return
        for item in parts:
            if self._lanes.add(decision.variant, item):
                self._pump()

    def _pump(self) -> None:
        self._timer += 1  # a timer that was set before rings in vain
        now_ms = self._events.now_ms
        while True:
            step = self._lanes.step(now_ms)
            for item in step.hopeless:
                self._fail(item, "expired")
            if step.start is None:
                break
            self._check(step.start)
            self._send(step.start, 1)
        if step.wake_ms is not None:
            self._events.at(max(now_ms, step.wake_ms), self._ring, self._timer)

    def _ring(self, timer: int) -> None:
        if timer == self._timer:
            self._pump()

    def _check(self, start: Start[Item]) -> None:
        if start.rows > self._max_batch:
            self._violated(f"a batch of {start.rows} rows, over the limit of {self._max_batch}")
        for item in start.items:
            if item.droppable and item.deadline_ms <= self._events.now_ms:
                self._violated(f"a request was run {self._events.now_ms - item.deadline_ms:.3f} ms too late")

    def _send(self, start: Start[Item], attempt: int) -> None:
        """One call."""
        replica = self._pick()
        now_ms, timing = self._events.now_ms, self._timing
        there_ms = max(now_ms + timing.half_hop_ms(), replica.up_at_ms)
        begins_ms = max(there_ms, replica.free_at_ms)
        run_ms = timing.run_ms(self._variants[start.variant], start.rows) * replica.factor
        replica.free_at_ms = begins_ms + run_ms
        replica.flights[start.flight] = (start, attempt)
        if replica.up_at_ms <= now_ms:
            self._move(replica, len(replica.flights) - 1, len(replica.flights))
        self.busy_ms += run_ms
        self.batches += 1
        self.batch_rows += start.rows
        lands_ms = begins_ms + run_ms + timing.half_hop_ms()
        self._events.at(lands_ms, self._land, replica, replica.epoch, start, run_ms, begins_ms - there_ms)

    def _pick(self) -> _Replica:
        """The replica with the fewest batches, as the router picks it; the dead only where none lives."""
        for replicas in self._by_open:
            if replicas:
                return next(iter(replicas.values()))
        return min(self._replicas, key=lambda replica: replica.up_at_ms)

    def _move(self, replica: _Replica, before: int | None, after: int | None) -> None:
        """Keep the replicas by how many batches each has open; None: it is dead."""
        if before is not None:
            del self._by_open[before][id(replica)]
        if after is not None:
            while len(self._by_open) <= after:
                self._by_open.append({})
            self._by_open[after][id(replica)] = replica

    def _land(self, replica: _Replica, epoch: int, start: Start[Item], run_ms: float, wait_ms: float) -> None:
        if epoch != replica.epoch:
            return
        del replica.flights[start.flight]
        if replica.up_at_ms <= self._events.now_ms:
            self._move(replica, len(replica.flights) + 1, len(replica.flights))
        self._lanes.landed(start, self._events.now_ms, run_ms, wait_ms)
        for item in start.items:
            owner = item.owner
            if owner is None:
                continue
            owner.parts -= 1
            if not owner.parts and not owner.left:
                self._end(owner, "answered")
        self._pump()

    def _lose(self, start: Start[Item], attempt: int) -> None:
        """The call came back with an error."""
        if attempt == 1 and self._lanes.may_resend(start, self._events.now_ms):
            self._send(start, 2)
            return
        self._lanes.lost(start)
        for item in start.items:
            self._fail(item, "failed")
        self._pump()

    def _fail(self, item: Item, outcome: Outcome) -> None:
        owner = item.owner
        late_ms = self._events.now_ms - item.deadline_ms
        if outcome == "expired" and late_ms > _TOLD_WITHIN_MS:
            self._violated(f"a caller was told {late_ms:.3f} ms after the deadline that it would not be met")
        if owner is not None and not owner.left:
            owner.left = True
            self._end(owner, outcome)

    def suffer(self, fault: Fault, restart_ms: float) -> None:
        """Let a fault happen now."""
        replica = self._replicas[fault.index % len(self._replicas)]
        now_ms = self._events.now_ms
        if fault.kind == "slow":
            replica.factor *= fault.factor
            self._events.at(now_ms + fault.lasts_ms, self._recover, replica, fault.factor)
        elif fault.kind == "kill":
            if replica.up_at_ms <= now_ms:
                self._move(replica, len(replica.flights), None)
            replica.epoch += 1
            replica.up_at_ms = replica.free_at_ms = now_ms + restart_ms
            lost, replica.flights = replica.flights, {}
            self._events.at(now_ms + _NOTICED_MS, self._count_replicas)
            self._events.at(replica.up_at_ms, self._revive, replica, replica.epoch)
            for start, attempt in lost.values():
                self._events.at(now_ms + _NOTICED_MS, self._lose, start, attempt)

    def _revive(self, replica: _Replica, epoch: int) -> None:
        if epoch == replica.epoch:
            self._move(replica, None, len(replica.flights))
            self._count_replicas()

    def _count_replicas(self) -> None:
        now_ms = self._events.now_ms
        self._lanes.resize(sum(replica.up_at_ms <= now_ms for replica in self._replicas))
        self._pump()

    @staticmethod
    def _recover(replica: _Replica, factor: float) -> None:
        replica.factor /= factor
