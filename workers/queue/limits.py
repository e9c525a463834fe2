"""The numbers and the arithmetic of rates that both queues share, each in one place. Pure.

The scripts of the queue on Redis get :data:`IN_SCRIPTS` as Lua locals (:mod:`workers.queue.redis.scripts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import exp

from workers.queue.job import DEFAULT_ATTEMPTS

#: One claim expires no more jobs than this, so that no call keeps the server from others for long.
MAX_EXPIRED_PER_CLAIM = 1000
#: One claim hands out no more payload than this, though always one job.
MAX_BYTES_PER_CLAIM = 64 << 20
#: How often one claim expires late jobs and looks again, to reach tenants with work behind those without.
CLAIM_ROUNDS = 8
#: A job's record keeps its last failures, each cut to so many characters.
KEPT_FAILURES, MAX_ERROR_CHARS = 10, 2000

#: Counts of ended jobs decay with this time constant. A rate is taken over at least this span.
RATE_MS, MIN_RATE_SPAN_MS = 10_000, 1_000
#: After a pause of this length there is no rate, and the next one starts from zero.
RATE_PAUSE_MS = 60_000
#: The bounds of a predicted ``retry_after_ms``, and what it is where nothing can be predicted.
MIN_ROOM_MS, MAX_ROOM_MS, UNKNOWN_ROOM_MS = 10, 600_000, 1_000

IN_SCRIPTS: Mapping[str, int] = {
    "CLAIM_ROUNDS": CLAIM_ROUNDS,
    "KEPT_FAILURES": KEPT_FAILURES,
    "RATE_MS": RATE_MS,
    "MIN_RATE_SPAN_MS": MIN_RATE_SPAN_MS,
    "RATE_PAUSE_MS": RATE_PAUSE_MS,
    "MIN_ROOM_MS": MIN_ROOM_MS,
    "MAX_ROOM_MS": MAX_ROOM_MS,
    "UNKNOWN_ROOM_MS": UNKNOWN_ROOM_MS,
    "DEFAULT_ATTEMPTS": DEFAULT_ATTEMPTS,
}


def per_ms(ended: float, began_ms: int, last_ms: int, now_ms: int) -> float:
    """The rate at which something ends: ``ended`` is its decayed count at ``last_ms``, when the last one
    ended; ``began_ms`` is when the present spell of activity began."""
    span_ms = max(MIN_RATE_SPAN_MS, min(RATE_MS, last_ms - began_ms))
    return ended * exp((last_ms - now_ms) / RATE_MS) / span_ms


def rows_per_s(ended_rows: float, began_ms: int, last_ms: int, now_ms: int) -> float | None:
    """The recent rate at which rows ended; ``None`` after a pause."""
    if now_ms - last_ms > RATE_PAUSE_MS:
        return None
    return 1e3 * per_ms(ended_rows, began_ms, last_ms, now_ms)
