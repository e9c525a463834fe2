"""What waits for one variant, earliest deadline first, and the variant's profile as live batches show it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort_right
from dataclasses import replace
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from optimizers.profile import OnlineFit
from router.estimate import Variant
from workers.batching import BoundTable

_REFIT_EVERY_MS = 250.0
#: A batch that is cut short for others' sake still runs at this share of the best throughput.
_EFFICIENT_SHARE = 0.8
#: Below this share no batch is run while enough waits for a larger one.
_LEAST_SHARE = 0.65


class Item(Protocol):
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


T = TypeVar("T", bound=Item)
_by_deadline = attrgetter("deadline_ms")


class Lane(Generic[T]):
    """What waits for one variant, earliest deadline first, and the variant's live profile."""

    def __init__(self, variant: Variant, max_batch: int) -> None:
        self.variant, self._max_batch = variant, max_batch
        self.waiting: list[T] = []
        #: Hopeless, and to be run all the same.
        self.late: list[T] = []
        self.rows = 0
        self._plan_with(BoundTable.of(variant.profile, max_batch))
        self._base, self._fit = variant.profile, OnlineFit(variant.profile)
        self._refit_at_ms = 0.0
        self.learnt_ms = float("-inf")

    def _plan_with(self, table: BoundTable) -> None:
        self.table = table
        self.efficient_rows, self.least_rows = (
            table.efficient(_EFFICIENT_SHARE),
            table.efficient(_LEAST_SHARE),
        )

    def add(self, item: T) -> None:
        insort_right(self.waiting, item, key=_by_deadline)
        self.rows += item.rows

    def rows_before(self, deadline_ms: float) -> int:
        """How many rows are taken before a request with this deadline would be, at their mean size."""
        if not self.waiting:
            return self.rows
        ahead = bisect_right(self.waiting, deadline_ms, key=_by_deadline)
        # What is late already is run in turns with the rest: no more of it than of that.
        ahead += min(len(self.late), ahead)
        return -(-self.rows * ahead // (len(self.waiting) + len(self.late)))

    def take(self, count: int) -> list[T]:
        """The first ``count``, without those whose callers have left."""
        items = self.waiting[:count]
        del self.waiting[:count]
        self.rows -= sum(item.rows for item in items)
        return [item for item in items if not item.left]

    def set_aside(self, items: list[T]) -> None:
        self.late += items
        self.rows += sum(item.rows for item in items)

    def take_late(self) -> list[T]:
        """One batch of those set aside, longest there first."""
        count = rows = 0
        for item in self.late:
            if count and rows + item.rows > self._max_batch:
                break
            count, rows = count + 1, rows + item.rows
        items = self.late[:count]
        del self.late[:count]
        self.rows -= rows
        return [item for item in items if not item.left]

    def forget(self, item: T) -> None:
        at = bisect_left(self.waiting, item.deadline_ms, key=_by_deadline)
        while at < len(self.waiting) and self.waiting[at].deadline_ms == item.deadline_ms:
            if self.waiting[at] is item:
                del self.waiting[at]
                self.rows -= item.rows
                return
            at += 1
        if item in self.late:
            self.late.remove(item)
            self.rows -= item.rows

    def learn(self, rows: int, ms: float, now_ms: float, hop_ms: float) -> bool:
        """Correct the profile by a live batch; True where the tables, which count the hop, followed."""
        self._fit.add(rows, ms)
        self.learnt_ms = now_ms
        if now_ms < self._refit_at_ms:
            return False
        self._refit_at_ms = now_ms + _REFIT_EVERY_MS
        self.variant = replace(self.variant, profile=self._fit.profile())
        self._plan_with(BoundTable.of(self.variant.profile.scaled(1.0, hop_ms), self._max_batch))
        return True

    @property
    def pessimism(self) -> float:
        """How many times slower the live bound for one row is than the measured one."""
        return self.variant.profile.bound_ms(1) / self._base.bound_ms(1)
