"""``next_batch(waiting, table, now_ms, ...)`` says which waiting work to run now, or how long to wait.

::

    table = BoundTable.of(profile, max_rows=256)             # once per profile, O(max_rows)
    next_batch(waiting, table, now_ms, busy_until_ms=0.0, lead_ms=0.0) -> RunBatch | WaitUntil | Idle

``waiting`` is any iterable of items with ``deadline_ms`` and ``rows`` in order of deadline; only the
batch and at most one item beyond it are looked at, so the cost does not depend on how much waits. All
times are milliseconds on one clock of the caller's choice; the batch worker uses the queue's, the
online dispatcher its monotonic clock.

The rule is that of deferred batching (Symphony, 2023) with early drop (Nexus, SOSP'19): the batch is
the largest whose time still keeps its earliest deadline, heads that cannot be met any more are
dropped instead of delaying those behind them, and a batch that could still grow is held back only
while the device is busy, because then waiting costs no deadline. An idle device never waits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from optimizers.profile import LatencyProfile


class BatchItem(Protocol):
    """What batching looks at: when it must be done (ms) and how many rows it has."""

    @property
    def deadline_ms(self) -> float: ...

    @property
    def rows(self) -> int: ...


ItemT = TypeVar("ItemT", bound=BatchItem)

#: So many items of another form are looked past for the sake of a larger batch.
_MOST_SKIPPED = 256


@dataclass(frozen=True, slots=True)
class BoundTable:
    """A latency profile as two tables by row count, so that a decision costs a lookup.

    ``bounds_ms[n - 1]`` is the time that a batch of ``n`` rows keeps (the profile's quantile bound),
    ``medians_ms`` the time it usually takes; both ascend. ``max_rows`` is the largest batch that is
    run at once; an item with more rows is run alone, in pieces.
    """

    bounds_ms: tuple[float, ...]
    medians_ms: tuple[float, ...]

    @property
    def max_rows(self) -> int:
        return len(self.bounds_ms)

    @classmethod
    def of(cls, profile: LatencyProfile, max_rows: int | None = None) -> BoundTable:
        """``max_rows`` defaults to the largest batch that was measured."""
        limit = profile.max_batch if max_rows is None else max_rows
        if limit < 1:
            raise ValueError(f"max_rows is {limit}, must be 1 or more")
        sizes = range(1, limit + 1)
        return cls(tuple(map(profile.bound_ms, sizes)), tuple(map(profile.predict_ms, sizes)))

    def bound_ms(self, rows: int) -> float:
        """The time that ``rows`` rows keep, run in pieces of at most ``max_rows``."""
        return _in_pieces(self.bounds_ms, rows)

    def predict_ms(self, rows: int) -> float:
        """The time that ``rows`` rows usually take, run in pieces of at most ``max_rows``."""
        times_ms = self.medians_ms
        return times_ms[rows - 1] if rows <= len(times_ms) else _in_pieces(times_ms, rows)

    def efficient(self, share: float) -> int:
        """The fewest rows that are run at ``share`` of the best rows per second, at the median."""
        best = max(rows / ms for rows, ms in enumerate(self.medians_ms, 1))
        return next(rows for rows, ms in enumerate(self.medians_ms, 1) if rows / ms >= share * best)

    def largest(self, within_ms: float) -> int:
        """The most rows whose bound is within ``within_ms``; 0 where even one row is not."""
        return bisect_right(self.bounds_ms, within_ms)


@dataclass(frozen=True, slots=True)
class RunBatch:
    """Run ``count`` items after the first ``dropped``, ``rows`` rows in all; ``bound_ms`` is the time
    that the run keeps. The dropped ones cannot meet their deadlines any more. Among the items that are run
    stand ``skipped`` of another form, which are not."""

    count: int
    rows: int
    dropped: int
    bound_ms: float
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Ask again at ``until_ms``, or when more arrives; the first ``dropped`` items are hopeless."""

    until_ms: float
    dropped: int


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing can be run: nothing waits beyond the first ``dropped`` items, which are hopeless."""

    dropped: int


def latest_start_ms(item: BatchItem, table: BoundTable, lead_ms: float) -> float:
    """From this moment on the deadline is hopeless, however soon a device is free."""
    return item.deadline_ms - lead_ms - table.predict_ms(item.rows)


def next_batch(
    waiting: Iterable[ItemT],
    table: BoundTable,
    now_ms: float,
    *,
    busy_until_ms: float = 0.0,
    lead_ms: float = 0.0,
    most_rows: int | None = None,
    least_rows: int = 0,
    waiting_rows: int = 0,
    form: Callable[[ItemT], Hashable] | None = None,
    form_rows: Mapping[Hashable, int] | None = None,
) -> RunBatch | WaitUntil | Idle:
    """The decision for one device that is free, or is predicted to be at ``busy_until_ms``.

    ``lead_ms`` is how long a batch takes to get to the device: one that frees within it counts as
    idle, so that the next batch is there when the last one ends. ``most_rows`` bounds the batch below
    what the table allows; a larger item still runs, alone.

    Heads whose deadlines leave time for fewer than ``least_rows`` are dropped while at least so many of
    the ``waiting_rows`` are behind them: after a stall every head is close to its deadline, batches of
    one or two cannot keep up, and all that follow would be lost in their turn.

    Only items of one ``form`` can be run as one batch: those of another than the head's are left where
    they are. ``form_rows`` are the ``waiting_rows`` by form. Without ``form`` all are alike.
    """
    start_ms = max(now_ms + lead_ms, busy_until_ms)
    idle = start_ms == now_ms + lead_ms
    items = iter(waiting)
    dropped, kind = 0, None
    seen: dict[Hashable, int] = {}
    for item in items:
        if form is not None:
            kind = form(item)
        if start_ms + table.predict_ms(item.rows) > item.deadline_ms:
            # Behind a busy device this is a forecast that may yet prove wrong: nobody is dropped
            # before not even a device that is free by surprise could help, and everybody is then.
            latest_ms = latest_start_ms(item, table, lead_ms)
            if not idle and now_ms < latest_ms:
                return WaitUntil(min(busy_until_ms, latest_ms), dropped)
        else:
            limit = table.largest(item.deadline_ms - start_ms)
            if limit >= least_rows or not idle:
                break
            all_rows = waiting_rows if form_rows is None else form_rows[kind]
            if all_rows - seen.get(kind, 0) - item.rows < least_rows:
                break
        dropped += 1
        seen[kind] = seen.get(kind, 0) + item.rows
    else:
        return Idle(dropped)
    if most_rows is not None and most_rows < limit:
        limit = most_rows
    count, rows, skipped, may_grow = _fill(items, item, limit, form)
    if may_grow and not idle:
        # Past this moment the head would no longer be met.
        until_ms = min(busy_until_ms, item.deadline_ms - table.bound_ms(rows)) - lead_ms
        if until_ms > now_ms:
            return WaitUntil(until_ms, dropped)
    return RunBatch(count, rows, dropped, table.bound_ms(rows), skipped)


def _fill(
    items: Iterator[ItemT], head: ItemT, limit: int, form: Callable[[ItemT], Hashable] | None
) -> tuple[int, int, int, bool]:
    """A batch of ``head`` and those after it: how many items and rows, how many were skipped among them, and
    whether it has room for more."""
    count, rows, skipped = 1, head.rows, 0
    if rows >= limit:
        return count, rows, skipped, False
    kind = None if form is None else form(head)
    for item in items:
        if form is not None and form(item) != kind:
            skipped += 1
            if skipped == _MOST_SKIPPED:
                return count, rows, skipped, False
            continue
        if rows + item.rows > limit:
            return count, rows, skipped, False
        count += 1
        rows += item.rows
        if rows == limit:
            return count, rows, skipped, False
    return count, rows, skipped, True


#: A free worker runs no batch below this share of its best throughput while enough waits for a larger one.
LEAST_SHARE = 0.65


def plan_batch(
    waiting: Sequence[ItemT],
    table: BoundTable,
    now_ms: float,
    least_rows: int,
    form: Callable[[ItemT], Hashable] | None = None,
) -> tuple[list[ItemT], list[ItemT]]:
    """What a worker that is free should give up, and what it should run next, of ``waiting``.

    Only what is hopeless is given up. Heads that leave time for fewer than ``least_rows`` are passed over
    while that many wait behind them: under twice the capacity, earliest deadline first would run
    everything at its last moment, in batches that cannot keep up. They stay where they are, and go when
    there is no time for them any more. Only items of one ``form`` are run together.
    """
    rows, form_rows = sum(item.rows for item in waiting), Counter[Hashable]()
    if form is not None:
        for item in waiting:
            form_rows[form(item)] += item.rows
    plan = next_batch(
        waiting,
        table,
        now_ms,
        least_rows=least_rows,
        waiting_rows=rows,
        form=form,
        form_rows=form_rows if form is not None else None,
    )
    hopeless = [x for x in waiting[: plan.dropped] if now_ms + table.predict_ms(x.rows) > x.deadline_ms]
    if not isinstance(plan, RunBatch):
        return hopeless, []
    chosen = list(waiting[plan.dropped : plan.dropped + plan.count + plan.skipped])
    if form is not None:
        chosen = [x for x in chosen if form(x) == form(chosen[0])]
    return hopeless, chosen


def _in_pieces(times_ms: tuple[float, ...], rows: int) -> float:
    limit = len(times_ms)
    if rows <= limit:
        return times_ms[rows - 1]
    whole, rest = divmod(rows, limit)
    return whole * times_ms[-1] + (times_ms[rest - 1] if rest else 0.0)
