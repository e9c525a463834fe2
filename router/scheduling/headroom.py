"""How late it gets where a prediction does not hold, and what those who are accepted must spare for it.

Pure. A prediction is a bound that 99 of 100 answers keep (`router.scheduling.calibration`). Whoever is
accepted was told that there is time, and of those no more than one of 1,000 is to be disappointed. So few are
too few to count: before enough of them were seen, the load is another. What can be seen soon is how often the
bound is exceeded and by how much, and beyond a high threshold the excess of nearly any distribution falls off
like an exponential one (peaks over threshold; Pickands, 1975). So the time that is exceeded by one of 1,000
is the bound and a few times the mean excess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from router.scheduling.calibration import PredictionMargins, class_of
from router.scheduling.tuning import (
    EXCESS_GAIN,
    EXCESS_SHARE_MAX,
    EXCESS_SHARE_MIN,
    EXCESS_SHARE_START,
    EXCESS_SHARE_WINDOW,
    EXCESS_START,
    MISS_BUDGET_SHARE,
)


class PredictedRequest(Protocol):
    """One request that was accepted. ``predicted_ms``: the time to its answer that was promised on arrival;
    0 where none was."""

    @property
    def arrived_ms(self) -> float: ...

    @property
    def deadline_ms(self) -> float: ...

    @property
    def predicted_ms(self) -> float: ...


class Headroom:
    """How often predictions of one class of budgets are exceeded, and by how much on the average.

    The mean is that of the exponential distribution with the same mean square, which lets a few stalls count
    for more than many small excesses.
    """

    def __init__(self, excess_ms: float) -> None:
        self._mean_square, self.share = 2.0 * excess_ms * excess_ms, EXCESS_SHARE_START

    @property
    def excess_ms(self) -> float:
        return math.sqrt(self._mean_square / 2.0)

    def learn(self, excesses_ms: Sequence[float], total: int) -> None:
        """Of ``total`` answers that came together, these were later than predicted, by so much."""
        self.share += (len(excesses_ms) - self.share * total) / EXCESS_SHARE_WINDOW
        self.share = min(EXCESS_SHARE_MAX, max(EXCESS_SHARE_MIN, self.share))
        if excesses_ms:
            seen = sum(ms * ms for ms in excesses_ms) / len(excesses_ms)
            self._mean_square += EXCESS_GAIN * (seen - self._mean_square)

    def headroom_ms(self, in_time: float) -> float:
        """What the share ``in_time`` of all answers is within, beyond their predictions."""
        return max(0.0, self.excess_ms * math.log(self.share / (MISS_BUDGET_SHARE * (1.0 - in_time))))


def initial_headroom_ms(in_time: float, bound_ms: float) -> float:
    """What a router that has just started spares, where a row alone is bound to take ``bound_ms``."""
    return Headroom(EXCESS_START * bound_ms).headroom_ms(in_time)


class Allowance(NamedTuple):
    """What a request needs beyond the usual time: the ``prediction_margin``, in spreads (see
    `router.scheduling.prediction.outlook`), and beyond that, to be accepted, ``headroom_ms``."""

    prediction_margin: float
    headroom_ms: float


class PredictionTracker:
    """What became of predictions, and how wide the next ones must be for it, by class of budgets.

    ``in_time``: of what is accepted this share is to be answered in time. ``bound_ms``: what a row alone is
    bound to take on the best variant.
    """

    def __init__(self, in_time: float, bound_ms: float) -> None:
        self._in_time, self._prediction_margins = in_time, PredictionMargins()
        self._all = Headroom(EXCESS_START * bound_ms)
        self._of: dict[int, Headroom] = {}
        self._headrooms_ms: dict[int, float] = {}
        self._initial_ms = self._all.headroom_ms(in_time)

    def aim(self, in_time: float) -> None:
        """Another share is to be in time from now on; what was learnt stays."""
        self._in_time = in_time
        self._headrooms_ms = {kind: overrun.headroom_ms(in_time) for kind, overrun in self._of.items()}
        self._initial_ms = Headroom(self._all.excess_ms).headroom_ms(in_time)

    def allowance(self, budget_ms: float, now_ms: float) -> Allowance:
        kind = class_of(budget_ms)
        return Allowance(
            self._prediction_margins.value(kind, now_ms), self._headrooms_ms.get(kind, self._initial_ms)
        )

    def answered(self, items: Sequence[PredictedRequest], now_ms: float) -> None:
        """These were answered together, in time or not."""
        took = [(x, now_ms - x.arrived_ms) for x in items if x.predicted_ms > 0.0]
        self._learn([(x.deadline_ms - x.arrived_ms, ms - x.predicted_ms) for x, ms in took], now_ms)

    def dropped(self, items: Sequence[PredictedRequest], now_ms: float) -> None:
        """These were accepted, and are told now that there is no time for them: they would have taken longer
        than their budgets, by nobody knows how much."""
        budgets = [(x, x.deadline_ms - x.arrived_ms) for x in items if x.predicted_ms > 0.0]
        self._learn([(ms, max(0.0, ms - x.predicted_ms) + 1e-9) for x, ms in budgets], now_ms)

    def _learn(self, came_due: Sequence[tuple[float, float]], now_ms: float) -> None:
        """Each one's budget, and by how much it took longer than predicted."""
        self._prediction_margins.learn(
            [(budget_ms, over_ms > 0.0) for budget_ms, over_ms in came_due], now_ms
        )
        overs_ms: dict[int, list[float]] = {}
        for budget_ms, over_ms in came_due:
            overs_ms.setdefault(class_of(budget_ms), []).append(over_ms)
        for kind, found_ms in overs_ms.items():
            overrun = self._of.get(kind)
            if overrun is None:
                overrun = self._of[kind] = Headroom(self._all.excess_ms)
            for each in (overrun, self._all):
                each.learn([ms for ms in found_ms if ms > 0.0], len(found_ms))
            self._headrooms_ms[kind] = overrun.headroom_ms(self._in_time)
        # How often is another matter for those with other budgets; by how much is much the same.
        self._initial_ms = Headroom(self._all.excess_ms).headroom_ms(self._in_time)
