"""How far a prediction must be stretched so that the truth lies within it as often as promised, and how much
more time than that whoever is accepted needs.

Adaptive conformal inference (Gibbs and Candès, 2021): every prediction that fell short widens the margin,
every one that held narrows it a little, in the proportion that balances at the promised share. It assumes
nothing about how latencies are distributed, and follows them when they change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

#: A step, where batches end no more often than this.
_GAIN, _INTERVAL_MS = 0.1, 33.0
_MOST_AT_ONCE, _MOST_A_SECOND = 0.6, 0.3
_HALF_LIFE_MS = 1_000.0
_LONGEST_MS = 1e12


class Rule(NamedTuple):
    """A margin goes from ``start`` on, within bounds, so that the share ``aim`` of all cases holds."""

    aim: float
    start: float
    lowest: float
    highest: float


#: Of a router that has just started.
START = 1.0
#: Of 100 predictions 99 are to hold. Aimed at is a little more: in a burst or a stall the margin widens only
#: so fast, and is too narrow meanwhile.
_BOUND = Rule(0.993, START, -0.9, 4.0)
#: A spread and a half for each nine beyond those that the bound gives already: seen to keep 999 of 1,000.
_SPARE_PER_NINE, _MOST_SPARE = 1.5, 3.0


def spare_start(in_time: float) -> float:
    """What a router that has just started asks for beyond the margin, in spreads, so that the share
    ``in_time`` of what it accepts is in time."""
    nines = -math.log10(max(1e-9, 1.0 - in_time))
    return min(_MOST_SPARE, max(0.0, _SPARE_PER_NINE * (nines - 2.0)))


class Margin:
    """A margin in spreads (see `router.estimate.online_ms`), learnt batch by batch.

    One step is scaled by the usual number of requests in a batch and by how often batches end, and no
    stall widens it by more than so much a second: requests that are late together are one event, however
    many they are. A margin so wide that it refuses everybody would learn nothing more: without news it
    narrows by itself.
    """

    def __init__(self, rule: Rule = _BOUND, value: float | None = None) -> None:
        self._value, self._learnt_ms = rule.start if value is None else value, -math.inf
        self._rule = rule
        self._usual_requests, self._usual_interval_ms = 1.0, _INTERVAL_MS
        self._may_widen = _MOST_AT_ONCE

    def value(self, now_ms: float) -> float:
        silent_ms = now_ms - self._learnt_ms
        start = self._rule.start
        if self._value <= start or not _HALF_LIFE_MS < silent_ms < math.inf:
            return self._value
        return start + (self._value - start) * math.exp2(1.0 - silent_ms / _HALF_LIFE_MS)

    def learn(self, short: int, total: int, now_ms: float) -> None:
        """Of ``total`` predictions that came due together, ``short`` were exceeded by the truth."""
        if total < 1:
            return
        since_ms = min(1_000.0, now_ms - self._learnt_ms)
        self._usual_requests += 0.05 * (total - self._usual_requests)
        self._usual_interval_ms += 0.05 * (since_ms - self._usual_interval_ms)
        self._may_widen = min(_MOST_AT_ONCE, self._may_widen + _MOST_A_SECOND * since_ms / 1_000.0)
        gain = _GAIN * min(1.0, self._usual_interval_ms / _INTERVAL_MS) / max(1.0, self._usual_requests)
        step = gain * (short - (1.0 - self._rule.aim) * total)
        if step > 0.0:
            step = min(step, self._may_widen)
            self._may_widen -= step
        self._value = min(self._rule.highest, max(self._rule.lowest, self.value(now_ms) + step))
        self._learnt_ms = now_ms


class Margins:
    """A `Margin` for each class of budgets, a factor of four wide.

    Waiting work is taken by deadline, so a request with a long budget is overtaken by those that come
    after it with short ones, and needs the wider margin; how much wider is learnt from what happens.
    """

    def __init__(self, rule: Rule = _BOUND) -> None:
        self._rule, self._all = rule, Margin(rule)
        self._of: dict[int, Margin] = {}

    def value(self, kind: int, now_ms: float) -> float:
        """The margin for a class of budgets; that of all requests for one that has not been seen."""
        return self._of.get(kind, self._all).value(now_ms)

    def learn(self, came_due: Iterable[tuple[float, bool]], now_ms: float) -> None:
        """Predictions that came due together: each one's budget, and whether the truth exceeded it."""
        counts: dict[int, list[int]] = {}
        for budget_ms, exceeded in came_due:
            count = counts.setdefault(class_of(budget_ms), [0, 0])
            count[0] += exceeded
            count[1] += 1
        if not counts:
            return
        self._all.learn(sum(c[0] for c in counts.values()), sum(c[1] for c in counts.values()), now_ms)
        for key, (short, total) in counts.items():
            margin = self._of.get(key)
            if margin is None:
                margin = self._of[key] = Margin(self._rule, self._all.value(now_ms))
            margin.learn(short, total, now_ms)


class Promised(Protocol):
    """One request that was accepted. ``predicted_ms``: the time to its answer that was promised on arrival;
    0 where none was. ``droppable``: accepted only because it was expected to be in time."""

    @property
    def arrived_ms(self) -> float: ...

    @property
    def deadline_ms(self) -> float: ...

    @property
    def predicted_ms(self) -> float: ...

    @property
    def droppable(self) -> bool: ...


class Promises:
    """What became of predictions and of deadlines, and how wide the next ones must be for it.

    The two are learnt apart. A prediction says what to expect, and one of 100 may be exceeded. Whoever is
    accepted was told that there is time, and no more than one of 1,000 (``in_time``: 0.999) may be
    disappointed: the spare time that takes, beyond the margin, is learnt from the deadlines that are missed.
    """

    def __init__(self, in_time: float) -> None:
        start = spare_start(in_time)
        # Aimed at is a little more, as for the bound, and for the same reason.
        aim = 1.0 - 0.7 * (1.0 - in_time)
        self._bounds, self._spares = Margins(), Margins(Rule(aim, start, 0.0, max(start, _MOST_SPARE)))

    def widths(self, budget_ms: float, now_ms: float) -> tuple[float, float]:
        """The margin of a prediction for this budget, and the spare time beyond it, both in spreads."""
        kind = class_of(budget_ms)
        return self._bounds.value(kind, now_ms), self._spares.value(kind, now_ms)

    def answered(self, items: Sequence[Promised], now_ms: float) -> None:
        """These were answered together, in time or not."""
        told = [item for item in items if item.predicted_ms > 0.0]
        bounds = [(x.deadline_ms - x.arrived_ms, now_ms - x.arrived_ms > x.predicted_ms) for x in told]
        self._bounds.learn(bounds, now_ms)
        times = [(x.deadline_ms - x.arrived_ms, now_ms > x.deadline_ms) for x in told if x.droppable]
        self._spares.learn(times, now_ms)

    def dropped(self, items: Sequence[Promised], now_ms: float) -> None:
        """These were accepted, and are told now that there is no time for them."""
        broken = [(x.deadline_ms - x.arrived_ms, True) for x in items if x.predicted_ms > 0.0]
        self._bounds.learn(broken, now_ms)
        self._spares.learn(broken, now_ms)


def class_of(budget_ms: float) -> int:
    """Budgets of one class are within a factor of four."""
    return int(min(budget_ms, _LONGEST_MS)).bit_length() // 2
