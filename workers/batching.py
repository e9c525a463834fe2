"""``next_batch(waiting, table, now_ms, ...)`` says which waiting work to run now, or how long to wait.

::

    table = BoundTable.of(profile, max_rows=256)             # once per profile, O(max_rows)
    next_batch(waiting, table, now_ms, busy_until_ms=0.0, lead_ms=0.0) -> Run | Wait | Idle

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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from optimizers.profile import LatencyProfile


class Item(Protocol):
    """What batching looks at: when it must be done (ms) and how many rows it has."""

    @property
    def deadline_ms(self) -> float: ...

    @property
    def rows(self) -> int: ...


Waiting = TypeVar("Waiting", bound=Item)


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
class Run:
    """Run ``count`` items after the first ``dropped``, ``rows`` rows in all; ``bound_ms`` is the time
    that the run keeps. The dropped ones cannot meet their deadlines any more."""

    count: int
    rows: int
    dropped: int
    bound_ms: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again at ``until_ms``, or when more arrives; the first ``dropped`` items are hopeless."""

    until_ms: float
    dropped: int


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing can be run: nothing waits beyond the first ``dropped`` items, which are hopeless."""

    dropped: int


def latest_start_ms(item: Item, table: BoundTable, lead_ms: float) -> float:
    """From this moment on the deadline is hopeless, however soon a device is free."""
    return item.deadline_ms - lead_ms - table.predict_ms(item.rows)


def next_batch(
    waiting: Iterable[Item],
    table: BoundTable,
    now_ms: float,
    *,
    busy_until_ms: float = 0.0,
    lead_ms: float = 0.0,
    most_rows: int | None = None,
    least_rows: int = 0,
    waiting_rows: int = 0,
) -> Run | Wait | Idle:
    """The decision for one device that is free, or is predicted to be at ``busy_until_ms``.

    ``lead_ms`` is how long a batch takes to get to the device: one that frees within it counts as
    idle, so that the next batch is there when the last one ends. ``most_rows`` bounds the batch below
    what the table allows; a larger item still runs, alone.

    Heads whose deadlines leave time for fewer than ``least_rows`` are dropped while at least so many of
    the ``waiting_rows`` are behind them: after a stall every head is close to its deadline, batches of
    one or two cannot keep up, and all that follow would be lost in their turn.
    """
    start_ms = max(now_ms + lead_ms, busy_until_ms)
    idle = start_ms == now_ms + lead_ms
    dropped = count = rows = 0
    earliest_ms = 0.0
    limit = seen = 0
    for item in waiting:
        if not count:
            earliest_ms = item.deadline_ms
            if start_ms + table.predict_ms(item.rows) > earliest_ms:
                # Behind a busy device this is a forecast that may yet prove wrong: nobody is dropped
                # before not even a device that is free by surprise could help, and everybody is then.
                latest_ms = latest_start_ms(item, table, lead_ms)
                if not idle and now_ms < latest_ms:
                    return Wait(min(busy_until_ms, latest_ms), dropped)
                dropped += 1
                seen += item.rows
                continue
            limit = table.largest(earliest_ms - start_ms)
            if limit < least_rows and waiting_rows - seen - item.rows >= least_rows and idle:
                dropped += 1
                seen += item.rows
                continue
            count, rows = 1, item.rows
            if most_rows is not None and most_rows < limit:
                limit = most_rows
            if rows >= limit:
                break
            continue
        if rows + item.rows > limit:
            break
        count += 1
        rows += item.rows
        if rows == limit:
            break
    else:
        if not count:
            return Idle(dropped)
        if not idle:
            # It may still grow. Past this moment the head would no longer be met.
            until_ms = min(busy_until_ms, earliest_ms - table.bound_ms(rows)) - lead_ms
            if until_ms > now_ms:
                return Wait(until_ms, dropped)
    return Run(count, rows, dropped, table.bound_ms(rows))


#: A free worker runs no batch below this share of its best throughput while enough waits for a larger one.
LEAST_SHARE = 0.65


def free_worker(
    waiting: Sequence[Waiting], table: BoundTable, now_ms: float, least_rows: int
) -> tuple[list[Waiting], list[Waiting]]:
    """What a worker that is free should give up, and what it should run next, of ``waiting``.

    Only what is hopeless is given up. Heads that leave time for fewer than ``least_rows`` are passed over
    while that many wait behind them: under twice the capacity, earliest deadline first would run
    everything at its last moment, in batches that cannot keep up. They stay where they are, and go when
    there is no time for them any more.
    """
    rows = sum(item.rows for item in waiting)
    plan = next_batch(waiting, table, now_ms, least_rows=least_rows, waiting_rows=rows)
    hopeless = [x for x in waiting[: plan.dropped] if now_ms + table.predict_ms(x.rows) > x.deadline_ms]
    chosen = waiting[plan.dropped : plan.dropped + plan.count] if isinstance(plan, Run) else []
    return hopeless, list(chosen)


def _in_pieces(times_ms: tuple[float, ...], rows: int) -> float:
    limit = len(times_ms)
    if rows <= limit:
        return times_ms[rows - 1]
    whole, rest = divmod(rows, limit)
    return whole * times_ms[-1] + (times_ms[rest - 1] if rest else 0.0)
