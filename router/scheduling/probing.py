"""How long an estimate may go without news before a row is run to get some. Pure."""

from __future__ import annotations

from router.scheduling.tuning import (
    DOUBTFUL_HOP_MS,
    DOUBTFUL_MARGIN,
    DOUBTFUL_PESSIMISM,
    PROBE_IDLE_SHARE,
    PROBE_IN_DOUBT_MS,
    PROBE_MS,
    PROBE_WITHIN_BOUNDS,
    PROBE_WITHIN_MS,
)


def doubtful(pessimism: float, hop_ms: float, prediction_margin: float) -> bool:
    """Whether estimates speak of trouble, which may be over: how much slower than measured the worst variant
    is held to be, what a call costs beside the model, and how wide predictions are, in spreads."""
    return pessimism > DOUBTFUL_PESSIMISM or hop_ms > DOUBTFUL_HOP_MS or prediction_margin > DOUBTFUL_MARGIN


def probe_after_ms(in_doubt: bool, asked: bool, takes_ms: float) -> float:
    """How long to wait after the last news of a variant, ms.

    ``asked``: somebody wanted an answer lately, and may have been refused for that trouble. ``takes_ms``:
    what a probe itself takes.
    """
    if not in_doubt:
        return PROBE_MS
    return PROBE_IN_DOUBT_MS if asked else min(PROBE_MS, max(PROBE_IN_DOUBT_MS, takes_ms / PROBE_IDLE_SHARE))


def probe_within_ms(bound_ms: float) -> float:
    """How long to wait for a probe of one row, ms: a replica that takes longer than this has stopped."""
    return PROBE_WITHIN_MS + PROBE_WITHIN_BOUNDS * bound_ms
