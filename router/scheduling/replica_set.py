"""A model's replicas as one router sees them: what each has of its batches, its pace, who else uses it.

Pure, like `router.scheduling.scheduler`, which asks it where a batch should go. A replica can differ from the
others in three ways, and each is learnt from the answers that it gives:

- it is *apart*: markedly slower than the others. It then has profiles of its own, and is taken where it
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

from router.scheduling.in_flight import Flight, Flights

#: Per replica: one batch runs, the next is already there. Where others keep it busy, one is enough.
BATCHES_IN_FLIGHT = 2
_SHARED = 0.1
#: How much slower than the others a replica is set apart, and below what it is one of them again.
_APART, _ALIKE = math.log(1.4), math.log(1.15)
#: One answer says so much of the pace, and never more than this: a stall is no pace.
_PACE_GAIN, _MOST_PACE = 0.1, math.log(4.0)
_OTHERS_GAIN, _SHARE_MS = 0.1, 1_000.0
#: No replica counts for less than this, however busy others keep it: a wait has to end some time.
_LEAST_ROOM = 0.1
#: One that is apart and has told nothing for so long is tried with a little, to see whether it still is.
UNHEARD_MS = 1_000.0
_CONSIDERED = 3

_Spot = tuple[float, int, "Member"]


class Member:
    """One replica. ``name`` is empty for whichever the source finds; times in ms."""

    __slots__ = (
        "apart",
        "busy_until_ms",
        "counted",
        "flights",
        "heard_ms",
        "held_until_ms",
        "landed_ms",
        "living",
        "name",
        "others_ms",
        "pace",
        "ran_ms",
        "shelf",
        "silent",
        "spot",
        "usage",
    )

    def __init__(self, name: str) -> None:
        self.name, self.living = name, True
        self.flights: dict[int, Flight] = {}
        self.busy_until_ms = self.held_until_ms = 0.0
        #: How many times slower than the others, as a logarithm.
        self.pace = 0.0
        self.apart = self.silent = False
        self.heard_ms = self.landed_ms = -math.inf
        #: The share of its time that others take, what a batch waits for theirs, what it ran in all.
        self.usage = self.others_ms = 0.0
        self.ran_ms: float | None = None
        self.shelf: list[_Spot] | None = None
        self.spot: _Spot = (0.0, 0, self)
        self.counted = (0, 0, 0.0, 0.0)

    @property
    def shared(self) -> bool:
        return self.usage > _SHARED

    @property
    def wait_ms(self) -> float:
        """How long a batch waits there for others' batches, beside this router's own."""
        return self.others_ms if self.shared else 0.0

    @property
    def slots(self) -> int:
        return 1 if self.shared else BATCHES_IN_FLIGHT

    @property
    def room(self) -> float:
        """How much of a replica of usual pace it is worth to this router."""
        free = max(_LEAST_ROOM, 1.0 - self.usage) if self.shared else 1.0
        return free * math.exp(-self.pace) if self.apart else free


class Fleet:
    """The replicas that live, and the batches that are away at them."""

    def __init__(self, count: int) -> None:
        self._members: dict[str, Member] = {}
        self.flights = Flights()
        #: With room for a batch, at the usual pace and apart; and without room, at the usual pace.
        self._ready: list[_Spot] = []
        self._ready_apart: list[_Spot] = []
        self._full: list[_Spot] = []
        self._turn = 0
        self._living = self._usual = 0
        self._rooms = self._others = 0.0
        self._silent_since_ms = 0.0
        self.become([str(number) for number in range(max(1, count))])

    def become(self, names: Collection[str]) -> set[str]:
        """These replicas live now; with none it is as with one, which will be back. Gives who is gone."""
        wanted = set(names) or {""}
        gone = self._members.keys() - wanted
        for name in gone:
            member = self._members.pop(name)
            member.living = False
            self._file(member)
        for name in names or ("",):
            if name not in self._members:
                self._members[name] = Member(name)
                self._file(self._members[name])
        self._keep_some_usual()
        return set(gone)

    def _file(self, member: Member) -> None:
        """Put it where it is looked for, and count it as what it is."""
        if member.shelf is not None:
            del member.shelf[bisect_left(member.shelf, member.spot)]
            member.shelf = None
        answers = member.living and not member.silent
        if answers:
            if len(member.flights) < member.slots:
                member.shelf = self._ready_apart if member.apart else self._ready
            elif not member.apart:
                member.shelf = self._full
            if member.shelf is not None:
                self._turn += 1
                member.spot = (member.busy_until_ms, self._turn, member)
                insort_right(member.shelf, member.spot)
        usual = answers and not member.apart
        before = member.counted
        member.counted = now = (
            int(answers),
            int(usual),
            member.room if answers else 0.0,
            member.wait_ms if usual else 0.0,
        )
        if now != before:
            self._living += now[0] - before[0]
            self._usual += now[1] - before[1]
            self._rooms += now[2] - before[2]
            self._others += now[3] - before[3]

    def _keep_some_usual(self) -> None:
        """Where only slow ones are left, they are what is usual."""
        if not self._usual:
            for member in self._members.values():
                if member.apart and not member.silent:
                    self._set_apart(member, False)

    @property
    def size(self) -> int:
        """How many replicas there are that answer, or could if only they did."""
        return self._living or len(self._members)

    @property
    def usual(self) -> int:
        return max(1, self._usual)

    @property
    def rooms(self) -> float:
        """What they are worth together to this router, in replicas of usual pace that it has for itself."""
        return self._rooms if self._living else float(len(self._members))

    @property
    def has_room(self) -> bool:
        return bool(self._ready or self._ready_apart)

    def busy_ms(self, now_ms: float) -> float:
        """How long a replica of usual pace is busy yet, on the average: with own batches, with others'."""
        if not self._living:
            # A silence lasts about as long again as it has lasted.
            return max(0.0, now_ms - self._silent_since_ms)
        return (self.flights.remaining_ms(now_ms) + self._others) / self.usual

    def ready(self) -> Member | None:
        """The one of usual pace that is free first and has room for a batch."""
        return self._ready[0][2] if self._ready else None

    def full(self) -> Member | None:
        """The one of usual pace that is free first among those that have no room."""
        return self._full[0][2] if self._full else None

    def ready_apart(self) -> list[Member]:
        """A few of those apart that have room, those that are free first."""
        return [spot[2] for spot in self._ready_apart[:_CONSIDERED]]

    def other_than(self, name: str) -> Member | None:
        """One with room that is not this one."""
        for shelf in (self._ready, self._ready_apart):
            for _, _, member in shelf[:2]:
                if member.name != name:
                    return member
        return None

    def unheard(self, now_ms: float, for_ms: float) -> bool:
        """Whether one that is apart, idle and answering has told nothing for so long."""
        return any(
            not member.flights and now_ms - member.heard_ms >= for_ms
            for _, _, member in self._ready_apart[:_CONSIDERED]
        )

    def depart(self, member: Member, sent_ms: float, end_ms: float, patience_ms: float) -> int:
        """A batch goes to ``member`` and should end there at ``end_ms``; gives the flight's number."""
        flight = Flight(member, sent_ms, end_ms, patience_ms)
        number = self.flights.add(flight)
        member.flights[number] = flight
        member.busy_until_ms = max(member.busy_until_ms, end_ms)
        self._file(member)
        return number

    def arrive(self, number: int) -> Flight | None:
        """A batch is back, or lost; None where that is known already."""
        flight = self.flights.remove(number)
        if flight is None:
            return None
        member = flight.member
        del member.flights[number]
        member.busy_until_ms = max((each.end_ms for each in member.flights.values()), default=0.0)
        if not member.flights:
            member.silent = False  # nothing is away any more that could tell: the next batch will
        self._file(member)
        return flight

    def heed(self, now_ms: float) -> None:
        """Pass over those that should have answered long ago."""
        due = self.flights.due
        if not due or due[0][0] > now_ms:
            return
        while (flight := self.flights.silent(now_ms)) is not None:
            if not flight.member.silent:
                flight.member.silent = True
                self._silent_since_ms = flight.end_ms
                self._file(flight.member)
                self._keep_some_usual()

    def answered(self, flight: Flight, now_ms: float) -> bool:
        """It lives, then; True where it had been silent for this batch."""
        member = flight.member
        member.heard_ms = now_ms
        if not member.silent:
            return now_ms >= flight.silent_ms
        member.silent = False
        for number in member.flights:
            self.flights.more_patience(number, now_ms)
        self._file(member)
        return True

    def learn(
        self,
        flight: Flight,
        now_ms: float,
        run_ms: float,
        wait_ms: float,
        hop_ms: float,
        ran_ms: float | None,
    ) -> None:
        """From an answer: the batch ran ``run_ms`` after ``wait_ms``; the replica ran ``ran_ms`` in all."""
        member = flight.member
        own_ms = max(0.0, member.landed_ms - flight.sent_ms - hop_ms)
        others_ms = max(0.0, wait_ms - own_ms)
        member.others_ms += _OTHERS_GAIN * (others_ms - member.others_ms)
        if ran_ms is not None:
            if member.ran_ms is not None and now_ms > member.landed_ms and ran_ms >= member.ran_ms:
                since_ms = now_ms - member.landed_ms
                kept = math.exp(-since_ms / _SHARE_MS)
                usage = min(1.0, max(0.0, ran_ms - member.ran_ms - run_ms) / since_ms)
                member.usage = member.usage * kept + usage * (1.0 - kept)
            member.ran_ms = ran_ms
        member.landed_ms = now_ms
        # Others' batches lie there for so long yet. A batch that joined them now would wait longer than it
        # runs, and a later one is larger.
        member.held_until_ms = now_ms + max(0.0, member.wait_ms - run_ms)
        self._file(member)

    def pace(self, member: Member, slower: float) -> bool:
        """A batch took ``slower`` times as long as is usual; True where that sets the replica apart, or
        takes it back among the others."""
        told = min(_MOST_PACE, max(-_MOST_PACE, math.log(max(slower, 1e-6))))
        member.pace += _PACE_GAIN * (told - member.pace)
        if member.living and len(self._members) > 1:
            if not member.apart and member.pace > _APART and self._usual > 1:
                self._set_apart(member, True)
                return True
            if member.apart and member.pace < _ALIKE:
                self._set_apart(member, False)
                return True
        return False

    def _set_apart(self, member: Member, apart: bool) -> None:
        member.apart = apart
        self._file(member)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())
