"""How far a prediction must be stretched so that the truth lies within it as often as promised.

Adaptive conformal inference (Gibbs and Candès, 2021): every prediction that fell short widens the margin,
every one that held narrows it a little, in the proportion that balances at the promised share. It assumes
nothing about how latencies are distributed, and follows them when they change.
"""

from __future__ import annotations

PROMISED_SHARE = 0.99
_GAIN = 0.1
_START, _LOWEST, _HIGHEST = 0.3, -0.9, 4.0


class Margin:
    """A relative margin, learnt batch by batch: ``prediction = (1 + value) * estimate``.

    One step is scaled by the usual number of requests in a batch, because those of one batch are late
    together: a single stall is one event, however many requests it held up.
    """

    def __init__(self, promised: float = PROMISED_SHARE) -> None:
        self.value = _START
        self._promised = promised
        self._usual = 1.0

    def learn(self, short: int, total: int) -> None:
        """Of ``total`` predictions that came due together, ``short`` were exceeded by the truth."""
        if total < 1:
            return
        self._usual += 0.05 * (total - self._usual)
        step = _GAIN * (short - (1.0 - self._promised) * total) / max(1.0, self._usual)
        self.value = min(_HIGHEST, max(_LOWEST, self.value + step))
