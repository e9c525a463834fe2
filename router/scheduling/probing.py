"""How long an estimate may go without news before a row is run to get some. Pure."""

from __future__ import annotations

#: After so long any estimate wants news.
PROBE_MS = 5_000.0
_DOUBTFUL_MS = 250.0
_DOUBTFUL_PESSIMISM, _DOUBTFUL_HOP_MS, _DOUBTFUL_MARGIN = 2.0, 5.0, 1.2
#: Where nobody asks, probes may take this part of a replica's time: they mend the estimate for whoever asks
#: next, and meanwhile the processor is wanted by other models.
_IDLE_SHARE = 0.02
_PROBE_WITHIN_MS, _PROBE_BOUNDS = 1_000.0, 4.0


def doubtful(pessimism: float, hop_ms: float, prediction_margin: float) -> bool:
    """Whether estimates speak of trouble, which may be over: how much slower than measured the worst variant
    is held to be, what a call costs beside the model, and how wide predictions are, in spreads."""
    return (
        pessimism > _DOUBTFUL_PESSIMISM or hop_ms > _DOUBTFUL_HOP_MS or prediction_margin > _DOUBTFUL_MARGIN
    )


def probe_after_ms(in_doubt: bool, asked: bool, takes_ms: float) -> float:
    """How long to wait after the last news of a variant, ms.

    ``asked``: somebody wanted an answer lately, and may have been refused for that trouble. ``takes_ms``:
    what a probe itself takes.
    """
    if not in_doubt:
        return PROBE_MS
    return _DOUBTFUL_MS if asked else min(PROBE_MS, max(_DOUBTFUL_MS, takes_ms / _IDLE_SHARE))


def probe_within_ms(bound_ms: float) -> float:
    """How long to wait for a probe of one row, ms: a replica that takes longer than this has stopped."""
    return _PROBE_WITHIN_MS + _PROBE_BOUNDS * bound_ms
