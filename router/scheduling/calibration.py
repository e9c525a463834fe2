"""How far a prediction must be stretched so that the truth lies within it as often as promised.

Adaptive conformal inference (Gibbs and Candès, 2021): every prediction that fell short widens the margin,
every one that held narrows it a little, in the proportion that balances at the promised share. It assumes
nothing about how latencies are distributed, and follows them when they change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from router.scheduling.tuning import (
    MARGIN_AIM,
    MARGIN_GAIN,
    MARGIN_HALF_LIFE_MS,
    MARGIN_INTERVAL_MS,
    MARGIN_MAX,
    MARGIN_MAX_STEP,
    MARGIN_MAX_STEP_PER_S,
    MARGIN_MIN,
    MARGIN_START,
    MAX_BUDGET_CLASS_MS,
)


class PredictionMargin:
    """A margin in spreads (see `router.scheduling.prediction.online_ms`), learnt batch by batch.

    One step is scaled by the usual number of requests in a batch and by how often batches end, and no
    stall widens it by more than so much a second: requests that are late together are one event, however
    many they are. A margin so wide that it refuses everybody would learn nothing more: without news it
    narrows by itself.
    """

    def __init__(self, aim: float = MARGIN_AIM, value: float = MARGIN_START) -> None:
        self._value, self._learnt_ms = value, -math.inf
        self._aim = aim
        self._usual_requests, self._usual_interval_ms = 1.0, MARGIN_INTERVAL_MS
        self._may_widen = MARGIN_MAX_STEP

    def value(self, now_ms: float) -> float:
        silent_ms = now_ms - self._learnt_ms
        if self._value <= MARGIN_START or not MARGIN_HALF_LIFE_MS < silent_ms < math.inf:
            return self._value
        return MARGIN_START + (self._value - MARGIN_START) * math.exp2(1.0 - silent_ms / MARGIN_HALF_LIFE_MS)

    def learn(self, short: int, total: int, now_ms: float) -> None:
        """Of ``total`` predictions that came due together, ``short`` were exceeded by the truth."""
        if total < 1:
            return
        since_ms = min(1_000.0, now_ms - self._learnt_ms)
        self._usual_requests += 0.05 * (total - self._usual_requests)
        self._usual_interval_ms += 0.05 * (since_ms - self._usual_interval_ms)
        self._may_widen = min(MARGIN_MAX_STEP, self._may_widen + MARGIN_MAX_STEP_PER_S * since_ms / 1_000.0)
        gain = (
            MARGIN_GAIN
            * min(1.0, self._usual_interval_ms / MARGIN_INTERVAL_MS)
            / max(1.0, self._usual_requests)
        )
        step = gain * (short - (1.0 - self._aim) * total)
        if step > 0.0:
            step = min(step, self._may_widen)
            self._may_widen -= step
        self._value = min(MARGIN_MAX, max(MARGIN_MIN, self.value(now_ms) + step))
        self._learnt_ms = now_ms


class PredictionMargins:
    """A `PredictionMargin` for each class of budgets, a factor of four wide.

    Waiting work is taken by deadline, so a request with a long budget is overtaken by those that come
    after it with short ones, and needs the wider margin; how much wider is learnt from what happens.
    """

    def __init__(self) -> None:
        self._all = PredictionMargin()
        self._of: dict[int, PredictionMargin] = {}

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
                margin = self._of[key] = PredictionMargin(value=self._all.value(now_ms))
            margin.learn(short, total, now_ms)


def class_of(budget_ms: float) -> int:
    """Budgets of one class are within a factor of four."""
    return int(min(budget_ms, MAX_BUDGET_CLASS_MS)).bit_length() // 2
