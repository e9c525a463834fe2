"""When would it finish? Predictions for each option, from measured profiles and the load that waits.

Values in, values out: the dispatcher and the queue's statistics fill the snapshots, `decide` reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from types import MappingProxyType
from typing import NamedTuple

from router.policy.facts import MeasuredVariant
from router.scheduling.tuning import LEAST_QUEUE_MS, MAX_MARGIN_FOR_WORK, MAX_UTILIZATION


class OnlineLoad(NamedTuple):
    """A model's online side at one moment.

    ``variants`` are ordered best quality first. ``busy_ms`` is what remains of the batches that run,
    averaged over the replicas; ``waiting_ms`` the work that waits behind them, at one replica's pace, and
    ``ahead`` the part of it that waits for each variant: in rows, in ms, and of how many rows its batches are
    under pressure, which a request for that variant joins. No batch has more than ``max_batch`` rows.
    ``hop_ms`` is what a call costs beside the model. ``prediction_margin`` stretches a prediction so that the
    truth lies within it as often as promised (see `router.scheduling.calibration`). ``full``: the heap takes
    no more; ``recently_degraded`` names the variants that requests were degraded from in the last second,
    for want of time. ``demand_rows_per_s`` is how much was asked for in about the last second,
    refused or not. ``headroom_ms`` is what a request needs beyond the prediction to be accepted, so that as
    many of those accepted are in time as the policy asks for (see `router.scheduling.headroom`).
    """

    variants: Mapping[str, MeasuredVariant]
    replicas: int
    busy_ms: float
    waiting_ms: float
    hop_ms: float = 0.0
    full: bool = False
    prediction_margin: float = 0.0
    recently_degraded: Collection[str] = ()
    demand_rows_per_s: float = 0.0
    ahead: Mapping[str, tuple[int, float, int]] = MappingProxyType({})
    max_batch: int = 1 << 31
    headroom_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class BatchLoad:
    """A model's queue at one moment: rows that wait, and how many rows a second the workers drain.

    ``least_ms``: no answer came through the queue in less time lately, even if nothing was ahead of it.
    """

    variant: MeasuredVariant
    workers: int
    waiting_rows: int
    rows_per_s: float
    max_batch: int
    least_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class UnknownQueue:
    """A queue whose statistics are missing or old: how much waits in it is not known, and so not zero."""

    variant: MeasuredVariant


class ModelLoad(NamedTuple):
    """Both sides of one model; None where the policy gives it no such side."""

    online: OnlineLoad | None
    batch: BatchLoad | UnknownQueue | None


class Outlook(NamedTuple):
    """When one variant would answer a request, in ms from now.

    ``predicted_ms`` is what is promised: what runs, what waits, then the request's own batch, and the margin,
    which counts spreads, since a wait is made of many batches and its spread grows with its root only.
    ``likely_ms`` has less of the margin the less there is ahead, and with nothing it is ``alone_ms``, the
    bound of the request alone: what refusing can mend is the work ahead, not jitter. So ``headroom_ms``, how
    long before its deadline an answer must be expected to be accepted, is nothing without work ahead.
    """

    predicted_ms: float
    likely_ms: float
    headroom_ms: float
    alone_ms: float


def outlook(load: OnlineLoad, variant: str, rows: int) -> Outlook:
    """What to expect of ``variant`` for a request of ``rows`` rows that comes now."""
    wait_ms, prediction_margin = load.busy_ms + load.waiting_ms / load.replicas, load.prediction_margin
    own_ms, usual_ms = alone_ms(load, variant, rows), _usual_ms(load, variant, rows)
    spread_ms = sqrt(own_ms * usual_ms)
    mended = 1.0 if wait_ms >= own_ms else wait_ms / own_ms
    most = prediction_margin if prediction_margin < MAX_MARGIN_FOR_WORK else MAX_MARGIN_FOR_WORK
    likely_ms = usual_ms + most * mended * spread_ms if most > 0.0 else usual_ms
    return Outlook(
        usual_ms + prediction_margin * spread_ms,
        likely_ms if likely_ms > own_ms else own_ms,
        load.headroom_ms * mended,
        own_ms,
    )


def online_ms(load: OnlineLoad, variant: str, rows: int) -> float:
    """Predicted time to the answer, ms, with margin."""
    return outlook(load, variant, rows).predicted_ms


def _usual_ms(load: OnlineLoad, variant: str, rows: int) -> float:
    """How long it usually takes: behind what runs, and in the last batch of what waits for the same variant.

    The batches are counted as small as the scheduler may make them. The smallest keep the prediction of their
    first request, so a later request must not be predicted at the pace of the largest.
    """
    profile = load.variants[variant].profile
    usual_ms, ahead = load.busy_ms + load.hop_ms, load.ahead.get(variant)
    if ahead is None:
        return usual_ms + load.waiting_ms / load.replicas + profile.predict_ms(rows)
    rows_ahead, ahead_ms, batch_rows = ahead
    before, joined = divmod(rows_ahead // load.replicas, batch_rows)
    if before:
        usual_ms += before * profile.predict_ms(batch_rows)
    if joined and joined + rows > batch_rows:
        usual_ms, joined = usual_ms + profile.predict_ms(joined), 0
    return usual_ms + (load.waiting_ms - ahead_ms) / load.replicas + profile.predict_ms(joined + rows)


def overloaded(load: OnlineLoad, allowed: Sequence[str]) -> Collection[str]:
    """Those of the variants that could not keep up with all that is asked for, if all of it took them.

    Deadlines alone would give the first in line the best variant until the last find no time for any.
    The variant with the highest throughput is never among them.
    """
    if load.demand_rows_per_s <= 0.0 or len(allowed) < 2:
        return ()
    row_ms = {name: _row_ms_in_full_batches(load, name) for name in allowed}
    most_ms = MAX_UTILIZATION * 1_000.0 * load.replicas / load.demand_rows_per_s
    least_ms = min(row_ms.values())
    return [name for name, ms in row_ms.items() if ms > most_ms and ms > least_ms]


def _row_ms_in_full_batches(load: OnlineLoad, variant: str) -> float:
    """What a row takes under pressure. For a single one some variants need less still, but batches are full
    then, and what is known of other sizes is extrapolated from them."""
    profile = load.variants[variant].profile
    rows = min(load.max_batch, profile.max_batch)
    return profile.predict_ms(rows) / rows


def alone_ms(load: OnlineLoad, variant: str, rows: int) -> float:
    """How long it would take with nothing ahead of it, ms."""
    return load.variants[variant].profile.bound_ms(rows) + load.hop_ms


def batch_load(
    variant: MeasuredVariant,
    workers: int,
    max_batch: int,
    waiting_rows: int,
    seen_rows_per_s: float | None,
    least_ms: float = LEAST_QUEUE_MS,
) -> BatchLoad:
    """The queue as `router.scheduling.admission` sees it, from what its statistics tell."""
    rate = drain_rows_per_s(variant, workers, max_batch, waiting_rows, seen_rows_per_s)
    return BatchLoad(variant, workers, waiting_rows, rate, max_batch, least_ms)


def batch_ms(load: BatchLoad, rows: int) -> float:
    """Predicted time to the answer through the queue, ms: the rows ahead at the drain rate, then a batch,
    and never less than the least that was seen."""
    own = load.variant.profile.bound_ms(min(load.max_batch, rows))
    return max(load.least_ms, (load.waiting_rows + rows) / load.rows_per_s * 1_000.0 + own)


def drain_rows_per_s(
    variant: MeasuredVariant, workers: int, max_batch: int, waiting_rows: int, seen_rows_per_s: float | None
) -> float:
    """The rate at which the workers drain the queue: as seen while rows wait, else as profiled.

    An idle queue ends no more than arrives, so what is seen then says nothing of the workers' pace.
    What is seen just after a lull is too low as well: it counts for at least a tenth of the profile's.
    """
    size = max(1, min(max_batch, variant.profile.max_batch))
    profiled = workers * size / max(variant.profile.predict_ms(size), 1e-6) * 1_000.0
    if not waiting_rows or seen_rows_per_s is None:
        return profiled
    return max(seen_rows_per_s, 0.1 * profiled)
