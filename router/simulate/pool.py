"""The online replicas of one model in virtual time, on which the batches of all routers run, in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from router.policy.facts import MeasuredVariant
from router.scheduling.actions import BatchDispatch
from router.scheduling.delivery import RunTimes
from router.simulate.events import Events
from router.simulate.faults import Fault
from router.simulate.requests import SimulatedItem
from router.simulate.timing import Timing

#: How long it takes until the call to a replica that has died comes back with an error.
_NOTICED_MS = 20.0


class BatchCall(Protocol):
    """Who sent a batch. Exactly one of the two is called, once."""

    def completed(self, batch: BatchDispatch[SimulatedItem], times: RunTimes) -> None: ...

    def failed(self, batch: BatchDispatch[SimulatedItem]) -> None: ...


class _Sent(NamedTuple):
    batch: BatchDispatch[SimulatedItem]
    call: BatchCall


@dataclass(slots=True)
class _Replica:
    """``epoch`` counts its lives: what was sent to an earlier one is lost. ``stopped_ms`` is how long it
    stood still so far: whatever was on its way is so much later."""

    number: int
    free_at_ms: float = 0.0
    up_at_ms: float = 0.0
    stopped_until_ms: float = 0.0
    stopped_ms: float = 0.0
    ran_ms: float = 0.0
    epoch: int = 0
    factor: float = 1.0
    calls: dict[int, _Sent] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A replica that takes the place of a dead one is another."""
        return f"{self.number}.{self.epoch}"


class Pool:
    """``tell(names)`` hears which replicas live whenever the routers would."""

    def __init__(
        self,
        count: int,
        variants: Mapping[str, MeasuredVariant],
        events: Events,
        timing: Timing,
        tell: Callable[[list[str]], None],
    ) -> None:
        self._variants, self._events, self._timing, self._tell = variants, events, timing, tell
        self._replicas = [_Replica(number) for number in range(count)]
        self._named = {replica.name: replica for replica in self._replicas}
        self._numbered = 0
        self.busy_ms = 0.0
        self.batches = 0
        self.batch_rows = 0

    @property
    def size(self) -> int:
        return len(self._replicas)

    @property
    def names(self) -> list[str]:
        """Those that live."""
        now_ms = self._events.now_ms
        return [replica.name for replica in self._replicas if replica.up_at_ms <= now_ms]

    def send(self, batch: BatchDispatch[SimulatedItem], call: BatchCall) -> int:
        """One call, to the replica that is named, or to the one that Serve would find; gives its number."""
        replica, now_ms, timing = self._named.get(batch.replica), self._events.now_ms, self._timing
        if replica is None:
            replica = min(self._replicas, key=lambda each: (max(now_ms, each.up_at_ms), len(each.calls)))
        there_ms = max(now_ms + timing.half_hop_ms(), replica.up_at_ms, replica.stopped_until_ms)
        begins_ms = max(there_ms, replica.free_at_ms)
        run_ms = timing.run_ms(self._variants[batch.variant], batch.rows) * replica.factor
        replica.free_at_ms = begins_ms + run_ms
        self._numbered += 1
        replica.calls[self._numbered] = _Sent(batch, call)
        self.busy_ms += run_ms
        self.batches += 1
        self.batch_rows += batch.rows
        lands_ms = begins_ms + run_ms + timing.half_hop_ms()
        wait_ms = begins_ms - there_ms
        self._events.at(
            lands_ms, self._land, replica, replica.epoch, self._numbered, run_ms, wait_ms, replica.stopped_ms
        )
        return self._numbered

    def forget(self, number: int) -> bool:
        """Nobody waits for this call any longer; False where it has ended. Its batch runs all the same."""
        return any(replica.calls.pop(number, None) is not None for replica in self._replicas)

    def _land(
        self,
        replica: _Replica,
        epoch: int,
        number: int,
        run_ms: float,
        wait_ms: float,
        stopped_ms: float,
    ) -> None:
        if epoch != replica.epoch:
            return
        if stopped_ms < replica.stopped_ms:
            later_ms = self._events.now_ms + replica.stopped_ms - stopped_ms
            self._events.at(later_ms, self._land, replica, epoch, number, run_ms, wait_ms, replica.stopped_ms)
            return
        replica.ran_ms += run_ms
        sent = replica.calls.pop(number, None)
        if sent is not None:
            sent.call.completed(sent.batch, RunTimes(run_ms, wait_ms, replica.ran_ms))

    def suffer(self, fault: Fault, restart_ms: float) -> None:
        """Let a fault happen now."""
        replica = self._replicas[fault.index % len(self._replicas)]
        now_ms = self._events.now_ms
        if fault.kind == "slow":
            replica.factor *= fault.factor
            self._events.at(now_ms + fault.lasts_ms, self._recover, replica, fault.factor)
        elif fault.kind == "stop":
            until_ms = max(replica.stopped_until_ms, now_ms + fault.lasts_ms)
            more_ms = until_ms - max(replica.stopped_until_ms, now_ms)
            replica.stopped_until_ms = until_ms
            replica.stopped_ms += more_ms
            replica.free_at_ms = max(replica.free_at_ms, now_ms) + more_ms
        elif fault.kind == "kill":
            del self._named[replica.name]
            replica.epoch += 1
            replica.up_at_ms = replica.free_at_ms = now_ms + restart_ms
            replica.stopped_until_ms = replica.ran_ms = 0.0
            self._named[replica.name] = replica
            abandon, replica.calls = replica.calls, {}
            self._events.at(now_ms + _NOTICED_MS, self._count)
            self._events.at(replica.up_at_ms, self._count)
            for sent in abandon.values():
                self._events.at(now_ms + _NOTICED_MS, sent.call.failed, sent.batch)

    def _count(self) -> None:
        self._tell(self.names)

    @staticmethod
    def _recover(replica: _Replica, factor: float) -> None:
        replica.factor /= factor
