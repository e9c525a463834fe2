"""A recorded trace made to fit a machine: so fast that its busiest minute offers what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_MINUTE_S = 60.0
_STEPS = 60


def fitted(arrivals_s: Sequence[float], per_minute: float, window_s: float) -> tuple[list[float], float]:
    """Arrivals of ``window_s`` seconds around the busiest minute, from 0, and how many times faster they are.

    Time is compressed (bursts stay bursts) until the busiest 60 seconds of the replay hold ``per_minute``
    requests. A trace with fewer requests than two such minutes is played again behind itself.
    """
    times = np.sort(np.asarray(arrivals_s, dtype=float))
    whole = np.asarray(times)
    gap_s = times[-1] / max(1, len(times) - 1)
    while len(whole) < 2.0 * per_minute + 1:
        whole = np.concatenate([whole, whole[-1] + gap_s + times])
    slow, fast = 1e-6, 1e6
    for _ in range(_STEPS):
        speed = float(np.sqrt(slow * fast))
        slow, fast = (slow, speed) if _busiest(whole / speed)[0] > per_minute else (speed, fast)
    played = whole / slow
    _, start_s = _busiest(played)
    begin_s = max(0.0, min(start_s - (window_s - _MINUTE_S) / 2.0, played[-1] - window_s))
    kept = played[(played >= begin_s) & (played < begin_s + window_s)]
    return (kept - begin_s).tolist(), slow


def _busiest(times: Any) -> tuple[int, float]:
    """The most arrivals within any 60 seconds that begin with one, and when those begin."""
    counts = np.searchsorted(times, times + _MINUTE_S) - np.arange(len(times))
    at = int(np.argmax(counts))
    return int(counts[at]), float(times[at])
