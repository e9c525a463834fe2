"""A model's replicas as one router sees them: what each has of its batches, its pace, who else uses it.

Pure, like `router.scheduling.scheduler`, which asks it where a batch should go. A replica can differ from the
others in three ways, and each is learnt from the answers that it gives:

- it is *slow*: markedly slower than the others. It then has profiles of its own, and is taken where it
  would be done first all the same, or with what has time enough.
- it is *shared*: other routers' batches run on it. Each answer tells how long the replica has run so far,
  and what this router did not ask for was somebody else's.
- it is *silent*: a batch is overdue by more than its bound explains. It is passed over until it answers.

No two routers talk to each other: what they need to know of one another, the replica's answers tell.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort_right
from collections.abc import Collection, Iterator

from router.scheduling.in_flight import InFlightBatches
from router.scheduling.replica_state import InFlightBatch, ReplicaState, Spot
from router.scheduling.tuning import (
    MAX_PACE,
    OTHERS_GAIN,
    PACE_GAIN,
    REPLICAS_CONSIDERED,
    SLOW_PACE,
    USAGE_WINDOW_MS,
    USUAL_PACE,
)


class ReplicaSet:
    """The replicas that live, and the batches that are away at them."""

    def __init__(self, count: int) -> None:
        self._replicas: dict[str, ReplicaState] = {}
        self.in_flight = InFlightBatches()
        #: With room for a batch, at the usual pace and slow; and without room, at the usual pace.
        self._ready: list[Spot] = []
        self._ready_slow: list[Spot] = []
        self._full: list[Spot] = []
        self._turn = 0
        self._living = self._usual = 0
        self._rooms = self._others = 0.0
        self._silent_since_ms = 0.0
        self.set_replicas([str(number) for number in range(max(1, count))])

    def set_replicas(self, names: Collection[str]) -> set[str]:
        """These replicas live now; with none it is as with one, which will be back. Gives who is gone."""
        wanted = set(names) or {""}
        gone = self._replicas.keys() - wanted
        for name in gone:
            replica = self._replicas.pop(name)
            replica.living = False
            self._file(replica)
        for name in names or ("",):
            if name not in self._replicas:
                self._replicas[name] = ReplicaState(name)
                self._file(self._replicas[name])
        self._keep_some_usual()
        return set(gone)

    def _file(self, replica: ReplicaState) -> None:
        """Put it where it is looked for, and count it as what it is."""
        if replica.shelf is not None:
            del replica.shelf[bisect_left(replica.shelf, replica.spot)]
            replica.shelf = None
        answers = replica.living and not replica.silent
        if answers:
            if len(replica.in_flight) < replica.slots:
                replica.shelf = self._ready_slow if replica.slow else self._ready
            elif not replica.slow:
                replica.shelf = self._full
            if replica.shelf is not None:
                self._turn += 1
                replica.spot = (replica.busy_until_ms, self._turn, replica)
                insort_right(replica.shelf, replica.spot)
        usual = answers and not replica.slow
        before = replica.counted
        replica.counted = now = (
            int(answers),
            int(usual),
            replica.room if answers else 0.0,
            replica.wait_ms if usual else 0.0,
        )
        if now != before:
            self._living += now[0] - before[0]
            self._usual += now[1] - before[1]
            self._rooms += now[2] - before[2]
            self._others += now[3] - before[3]

    def _keep_some_usual(self) -> None:
        """Where only slow ones are left, they are what is usual."""
        if not self._usual:
            for replica in self._replicas.values():
                if replica.slow and not replica.silent:
                    self._set_slow(replica, False)

    @property
    def size(self) -> int:
        """How many replicas there are that answer, or could if only they did."""
        return self._living or len(self._replicas)

    @property
    def usual(self) -> int:
        return max(1, self._usual)

    @property
    def rooms(self) -> float:
        """What they are worth together to this router, in replicas of usual pace that it has for itself."""
        return self._rooms if self._living else float(len(self._replicas))

    @property
    def has_room(self) -> bool:
        return bool(self._ready or self._ready_slow)

    def busy_ms(self, now_ms: float) -> float:
        """How long a replica of usual pace is busy yet, on the average: with own batches, with others'."""
        if not self._living:
            # A silence lasts about as long again as it has lasted.
            return max(0.0, now_ms - self._silent_since_ms)
        return (self.in_flight.remaining_ms(now_ms) + self._others) / self.usual

    def ready(self) -> ReplicaState | None:
        """The one of usual pace that is free first and has room for a batch."""
        return self._ready[0][2] if self._ready else None

    def full(self) -> ReplicaState | None:
        """The one of usual pace that is free first among those that have no room."""
        return self._full[0][2] if self._full else None

    def ready_slow(self) -> list[ReplicaState]:
        """A few of the slow ones that have room, those that are free first."""
        return [spot[2] for spot in self._ready_slow[:REPLICAS_CONSIDERED]]

    def other_than(self, name: str) -> ReplicaState | None:
        """One with room that is not this one."""
        for shelf in (self._ready, self._ready_slow):
            for _, _, replica in shelf[:2]:
                if replica.name != name:
                    return replica
        return None

    def has_untested(self, now_ms: float, for_ms: float) -> bool:
        """Whether one that is slow, idle and answering has told nothing for so long."""
        return any(
            not replica.in_flight and now_ms - replica.answered_ms >= for_ms
            for _, _, replica in self._ready_slow[:REPLICAS_CONSIDERED]
        )

    def dispatch(self, replica: ReplicaState, sent_ms: float, end_ms: float, patience_ms: float) -> int:
        """A batch goes to ``replica`` and should end there at ``end_ms``; gives the batch's number."""
        batch = InFlightBatch(replica, sent_ms, end_ms, patience_ms)
        number = self.in_flight.add(batch)
        replica.in_flight[number] = batch
        replica.busy_until_ms = max(replica.busy_until_ms, end_ms)
        self._file(replica)
        return number

    def complete(self, number: int) -> InFlightBatch | None:
        """A batch is back, or lost; None where that is known already."""
        batch = self.in_flight.remove(number)
        if batch is None:
            return None
        replica = batch.replica
        del replica.in_flight[number]
        replica.busy_until_ms = max((each.end_ms for each in replica.in_flight.values()), default=0.0)
        if not replica.in_flight:
            replica.silent = False  # nothing is away any more that could tell: the next batch will
        self._file(replica)
        return batch

    def mark_silent(self, now_ms: float) -> None:
        """Pass over those that should have answered long ago."""
        due = self.in_flight.due
        if not due or due[0][0] > now_ms:
            return
        while (batch := self.in_flight.silent(now_ms)) is not None:
            if not batch.replica.silent:
                batch.replica.silent = True
                self._silent_since_ms = batch.end_ms
                self._file(batch.replica)
                self._keep_some_usual()

    def answered(self, batch: InFlightBatch, now_ms: float) -> bool:
        """It lives, then; True where it had been silent for this batch."""
        replica = batch.replica
        replica.answered_ms = now_ms
        if not replica.silent:
            return now_ms >= batch.silent_ms
        replica.silent = False
        for number in replica.in_flight:
            self.in_flight.more_patience(number, now_ms)
        self._file(replica)
        return True

    def learn(
        self,
        batch: InFlightBatch,
        now_ms: float,
        run_ms: float,
        wait_ms: float,
        hop_ms: float,
        ran_ms: float | None,
    ) -> None:
        """From an answer: the batch ran ``run_ms`` after ``wait_ms``; the replica ran ``ran_ms`` in all."""
        replica = batch.replica
        own_ms = max(0.0, replica.completed_ms - batch.sent_ms - hop_ms)
        others_ms = max(0.0, wait_ms - own_ms)
        replica.others_ms += OTHERS_GAIN * (others_ms - replica.others_ms)
        if ran_ms is not None:
            if replica.ran_ms is not None and now_ms > replica.completed_ms and ran_ms >= replica.ran_ms:
                since_ms = now_ms - replica.completed_ms
                kept = math.exp(-since_ms / USAGE_WINDOW_MS)
                usage = min(1.0, max(0.0, ran_ms - replica.ran_ms - run_ms) / since_ms)
                replica.usage = replica.usage * kept + usage * (1.0 - kept)
            replica.ran_ms = ran_ms
        replica.completed_ms = now_ms
        # Others' batches lie there for so long yet. A batch that joined them now would wait longer than it
        # runs, and a later one is larger.
        replica.held_until_ms = now_ms + max(0.0, replica.wait_ms - run_ms)
        self._file(replica)

    def pace(self, replica: ReplicaState, slower: float) -> bool:
        """A batch took ``slower`` times as long as is usual. True where this makes the replica slow, or it is
        slow no longer."""
        told = min(MAX_PACE, max(-MAX_PACE, math.log(max(slower, 1e-6))))
        replica.pace += PACE_GAIN * (told - replica.pace)
        if replica.living and len(self._replicas) > 1:
            if not replica.slow and replica.pace > SLOW_PACE and self._usual > 1:
                self._set_slow(replica, True)
                return True
            if replica.slow and replica.pace < USUAL_PACE:
                self._set_slow(replica, False)
                return True
        return False

    def _set_slow(self, replica: ReplicaState, slow: bool) -> None:
        replica.slow = slow
        self._file(replica)

    def __iter__(self) -> Iterator[ReplicaState]:
        return iter(self._replicas.values())
