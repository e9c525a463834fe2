"""A trace made to fit a machine: its busiest minute offers what was asked for, whatever its length."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.benchmarks.trace_scale import fitted


def recorded(count: int) -> list[float]:
    draw = random.Random(3)
    times = [0.0]
    while len(times) < count:
        times.append(times[-1] + draw.choice((0.01, 0.05, 20.0)))
    return times


@pytest.mark.parametrize("per_minute", [60.0, 600.0, 9_000.0])
def test_the_busiest_minute_holds_what_was_asked_for_and_lies_within_the_window(per_minute: float) -> None:
    times, speed = fitted(recorded(2_000), per_minute, 90.0)
    array = np.asarray(times)
    busiest = max(np.searchsorted(array, array + 60.0) - np.arange(len(array)))
    # Arrivals in bursts of one instant may come into the minute only together.
    assert busiest == pytest.approx(per_minute, rel=0.03, abs=8)
    assert times[0] >= 0.0 and times[-1] <= 90.0 and times == sorted(times)
    assert speed > 0


def test_bursts_stay_bursts() -> None:
    times, speed = fitted(recorded(2_000), 600.0, 90.0)
    gaps = set(np.round(np.diff(times) * speed, 6))
    assert gaps <= {0.01, 0.05, 20.0}
