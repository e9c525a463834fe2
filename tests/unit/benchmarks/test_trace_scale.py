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


@pytest.mark.parametrize("rows_per_s", [1.0, 10.0, 150.0])
def test_the_busiest_recorded_minute_comes_as_fast_as_asked_and_lies_within_the_window(
    rows_per_s: float,
) -> None:
    trace = recorded(2_000)
    times, speed = fitted(trace, rows_per_s, 90.0)
    minute_s = 60.0 / speed
    counts = np.searchsorted(times, np.asarray(times) + minute_s) - np.arange(len(times))
    if minute_s < 90.0:
        # Arrivals in bursts of one instant may come into the minute only together.
        assert max(counts) / minute_s == pytest.approx(rows_per_s, rel=0.02, abs=2.0 / minute_s)
    assert times[0] >= 0.0 and times[-1] <= 90.0 and times == sorted(times)


def test_bursts_stay_bursts_and_a_short_trace_is_played_again() -> None:
    times, speed = fitted(recorded(300), 200.0, 90.0)
    gaps = np.round(np.diff(times) * speed, 4)
    assert np.mean(np.isin(gaps, [0.01, 0.05, 20.0])) > 0.98
    assert times[-1] > 80.0
