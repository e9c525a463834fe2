"""A recorded trace made to fit a machine: so fast that its busiest minute offers what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_MINUTE_S = 60.0


def fitted(arrivals_s: Sequence[float], rows_per_s: float, window_s: float) -> tuple[list[float], float]:
    """Arrivals of ``window_s`` seconds around the busiest minute, from 0, and how many times faster they are.

    Time is compressed (bursts stay bursts) until the requests of the busiest recorded minute come at
    ``rows_per_s``. A trace that is over before the window is played again behind itself.
    """
    times = np.sort(np.asarray(arrivals_s, dtype=float))
    most, start_s = _busiest(times)
    speed = rows_per_s * _MINUTE_S / most
    played, middle_s = times / speed, (start_s + _MINUTE_S / 2.0) / speed
    once = played
    while played[-1] < window_s:
        played = np.concatenate([played, played[-1] + once[-1] / max(1, len(once) - 1) + once])
    begin_s = max(0.0, min(middle_s - window_s / 2.0, played[-1] - window_s))
    kept = played[(played >= begin_s) & (played < begin_s + window_s)]
    return (kept - begin_s).tolist(), speed


def _busiest(times: Any) -> tuple[int, float]:
    """The most arrivals within any 60 seconds that begin with one, and when those begin."""
    counts = np.searchsorted(times, times + _MINUTE_S) - np.arange(len(times))
    at = int(np.argmax(counts))
    return int(counts[at]), float(times[at])
