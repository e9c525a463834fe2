"""What waits for one variant, earliest deadline first, and the variant's profiles as live batches show them.

Replicas of the usual pace share one profile, which learns from all of them: a new one starts from it. One
that is slow (see `router.scheduling.replica_set`) has its own, which starts from the common one at that
replica's pace.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort_right
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from optimizers.profile import LatencyProfile, OnlineFit
from router.policy.facts import MeasuredVariant
from router.scheduling.replica_state import ReplicaState
from router.scheduling.tuning import EFFICIENT_SHARE, REFIT_EVERY_MS, SLOW_FIT_HALF_LIFE, SLOW_FIT_PRIOR
from workers.batching import LEAST_SHARE, BoundTable


class QueuedItem(Protocol):
    """One request (or a part of one) that waits. ``left``: its caller is gone, it costs no work any more.
    ``predicted_ms``: the time to its answer that was promised on arrival; 0 where none was."""

    @property
    def deadline_ms(self) -> float: ...

    @property
    def rows(self) -> int: ...

    @property
    def droppable(self) -> bool: ...

    @property
    def left(self) -> bool: ...

    @property
    def arrived_ms(self) -> float: ...

    @property
    def predicted_ms(self) -> float: ...


T = TypeVar("T", bound=QueuedItem)
_by_deadline = attrgetter("deadline_ms")
#: Of an item: what those have in common that can be joined to one batch.
Form = Callable[[T], Hashable]


class Pace:
    """One profile as live batches correct it, and its table, which counts the hop."""

    def __init__(self, profile: LatencyProfile, max_batch: int, fit: OnlineFit) -> None:
        self.profile, self._max_batch, self._fit = profile, max_batch, fit
        self.table = BoundTable.of(profile, max_batch)
        self._refit_at_ms = 0.0

    def learn(self, rows: int, ms: float, now_ms: float, hop_ms: float) -> bool:
        """Correct it by a live batch; True where the table followed."""
        self._fit.add(rows, ms)
        if now_ms < self._refit_at_ms:
            return False
        self._refit_at_ms = now_ms + REFIT_EVERY_MS
        self.profile = self._fit.profile()
        self.resize(self._max_batch, hop_ms)
        return True

    def resize(self, max_batch: int, hop_ms: float) -> None:
        """Batches have at most ``max_batch`` rows from now on."""
        self._max_batch = max_batch
        self.table = BoundTable.of(self.profile.scaled(1.0, hop_ms), max_batch)


class VariantQueue(Generic[T]):
    """What waits for one variant, earliest deadline first, and the variant's live profiles."""

    def __init__(self, variant: MeasuredVariant, max_batch: int, form: Form[T] | None = None) -> None:
        self.variant, self._max_batch, self.form = variant, max_batch, form
        self.waiting: list[T] = []
        #: Hopeless, and to be run all the same.
        self.late: list[T] = []
        self.rows = 0
        #: The same by form; empty where all are alike.
        self.form_rows: Counter[Hashable] = Counter()
        self._base = variant.profile
        self._common = Pace(variant.profile, max_batch, OnlineFit(variant.profile))
        self._own: dict[str, Pace] = {}
        self._plan_with(self._common.table)
        self.learnt_ms = float("-inf")

    def _plan_with(self, table: BoundTable) -> None:
        self.table = table
        self.efficient_rows, self.least_rows = (
            table.efficient(EFFICIENT_SHARE),
            table.efficient(LEAST_SHARE),
        )

    def resize(self, max_batch: int, hop_ms: float) -> None:
        """Batches have at most ``max_batch`` rows from now on; an item that waits with more runs alone."""
        self._max_batch = max_batch
        for pace in (self._common, *self._own.values()):
            pace.resize(max_batch, hop_ms)
        self._plan_with(self._common.table)

    def add(self, item: T) -> None:
        insort_right(self.waiting, item, key=_by_deadline)
        self.rows += item.rows
        if self.form is not None:
            self.form_rows[self.form(item)] += item.rows

    def _gone(self, items: Sequence[T]) -> None:
        """These have been taken out, and count no more."""
        self.rows -= sum(item.rows for item in items)
        if self.form is not None:
            for item in items:
                kind = self.form(item)
                self.form_rows[kind] -= item.rows
                if not self.form_rows[kind]:
                    del self.form_rows[kind]

    def rows_before(self, deadline_ms: float) -> int:
        """How many rows are taken before a request with this deadline would be, at their mean size."""
        waiting = self.waiting
        if not waiting or waiting[-1].deadline_ms <= deadline_ms:
            return self.rows  # as most of those are who come with the same budget as others
        ahead, count = bisect_right(waiting, deadline_ms, key=_by_deadline), len(waiting)
        if self.late:
            # What is late already is run in turns with the rest: no more of it than of that.
            ahead, count = ahead + min(len(self.late), ahead), count + len(self.late)
        return self.rows if ahead == count else -(-self.rows * ahead // count)

    def feasible_from(self, starts_ms: float, table: BoundTable) -> int | None:
        """The place of the first that could still be met by a batch that starts then, by ``table``."""
        place = bisect_left(self.waiting, starts_ms + table.predict_ms(1), key=_by_deadline)
        if place == len(self.waiting):
            return None
        item = self.waiting[place]
        return place if starts_ms + table.predict_ms(item.rows) <= item.deadline_ms else None

    def take(self, count: int, first: int = 0, skipped: int = 0) -> list[T]:
        """``count`` items from place ``first`` on, without those whose callers have left.

        Among them stand ``skipped`` of another form than the first one's, which stay.
        """
        return self._take(self.waiting, count, first, skipped)

    def _take(self, line: list[T], count: int, first: int, skipped: int) -> list[T]:
        end = first + count
        items = line[first:end]
        if skipped and self.form is not None:
            kind, each = self.form(line[first]), range(first, end + skipped)
            places = [place for place in each if self.form(line[place]) == kind]
            items = [line[place] for place in places]
            for place in reversed(places):
                del line[place]
        else:
            del line[first:end]
        self._gone(items)
        return [item for item in items if not item.left]

    def set_aside(self, items: list[T]) -> None:
        for item in items:
            self.late.append(item)
            self.rows += item.rows
            if self.form is not None:
                self.form_rows[self.form(item)] += item.rows

    def take_late(self) -> list[T]:
        """One batch of those set aside, longest there first."""
        count = rows = skipped = 0
        for item in self.late:
            if count and self.form is not None and self.form(item) != self.form(self.late[0]):
                skipped += 1
                continue
            if count and rows + item.rows > self._max_batch:
                break
            count, rows = count + 1, rows + item.rows
        return self._take(self.late, count, 0, skipped)

    def forget(self, item: T) -> None:
        at = bisect_left(self.waiting, item.deadline_ms, key=_by_deadline)
        while at < len(self.waiting) and self.waiting[at].deadline_ms == item.deadline_ms:
            if self.waiting[at] is item:
                del self.waiting[at]
                self._gone((item,))
                return
            at += 1
        if item in self.late:
            self.late.remove(item)
            self._gone((item,))

    def pace_of(self, replica: ReplicaState) -> Pace:
        """What batches take there."""
        if not replica.slow:
            return self._common
        own = self._own.get(replica.name)
        if own is None:
            profile = self._common.profile.scaled(math.exp(replica.pace))
            fit = OnlineFit(profile, half_life=SLOW_FIT_HALF_LIFE, prior=SLOW_FIT_PRIOR)
            own = self._own[replica.name] = Pace(profile, self._max_batch, fit)
        return own

    def forget_pace(self, names: Iterable[str]) -> None:
        """These replicas are gone, or no longer slow."""
        for name in names:
            self._own.pop(name, None)

    def learn(self, replica: ReplicaState, rows: int, ms: float, now_ms: float, hop_ms: float) -> bool:
        """Correct the profile by a live batch; True where the common tables followed."""
        self.learnt_ms = now_ms
        pace = self.pace_of(replica)
        if not pace.learn(rows, ms, now_ms, hop_ms) or pace is not self._common:
            return False
        self.variant = replace(self.variant, profile=pace.profile)
        self._plan_with(pace.table)
        return True

    def slower(self, rows: int, ms: float) -> float:
        """How many times as long as is usual a batch took."""
        return ms / self._common.profile.predict_ms(rows)

    @property
    def pessimism(self) -> float:
        """How many times slower the live bound for one row is than the measured one."""
        return self.variant.profile.bound_ms(1) / self._base.bound_ms(1)
