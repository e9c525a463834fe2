"""How long a variant takes for a batch of n rows: measured, bounded, and corrected while it serves.

A :class:`LatencyProfile` is a value. It answers with the median (``predict_ms``) and with a bound
that a batch should keep (``bound_ms``), both monotone in the number of rows: between measured
batches by interpolation, beyond the largest by the line ``l(n) = a + b n`` fitted to all of them,
which ``is_measured`` lets the caller see. :class:`OnlineFit` corrects it from live batches.

The linear model of batch latency is that of Clockwork (OSDI'20) and Nexus (SOSP'19).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TAIL_QUANTILE = 0.99

#: A variant that answers in less than this is bound by the caller's clock, not by its own work.
_SMALLEST_MS = 1e-4
#: Slope per row for a model whose measured time does not grow: keeps every prediction strictly usable.
_SMALLEST_SLOPE_MS = 1e-6
#: So many row counts are remembered by a profile.
_MOST_KNOWN = 1_000


class ProfileError(ValueError):
    """Measurements that cannot make a profile. The message says which and why."""


@dataclass(frozen=True, slots=True)
class ProfilePoint:
    """One measured batch size (rows): median and 99th percentile, in milliseconds."""

    batch: int
    median_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class LatencyProfile:
    """Latency by batch size. ``points`` are sorted by batch; medians and tails never fall with it.

    ``tail_factor`` multiplies the measured tail in ``bound_ms``: 1 as measured, more when live
    batches turned out less steady than the measurement (see :class:`OnlineFit`).
    """

    points: tuple[ProfilePoint, ...]
    tail_factor: float = 1.0
    _batches: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _medians: tuple[float, ...] = field(init=False, repr=False, compare=False)
    _tails: tuple[float, ...] = field(init=False, repr=False, compare=False)
    _line: tuple[float, float] = field(init=False, repr=False, compare=False)
    _tail_slope: float = field(init=False, repr=False, compare=False)
    #: What was asked for before, by rows: every decision asks several times, mostly for few rows.
    _known_medians: dict[int, float] = field(init=False, repr=False, compare=False)
    _known_bounds: dict[int, float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _validate(self.points, self.tail_factor)
        batches = tuple(p.batch for p in self.points)
        medians = tuple(p.median_ms for p in self.points)
        object.__setattr__(self, "_known_medians", {})
        object.__setattr__(self, "_known_bounds", {})
        object.__setattr__(self, "_batches", batches)
        object.__setattr__(self, "_medians", medians)
        line = _fit_line(batches, medians)
        tails = tuple(p.p99_ms * self.tail_factor for p in self.points)
        object.__setattr__(self, "_tails", tails)
        object.__setattr__(self, "_line", line)
        object.__setattr__(self, "_tail_slope", line[1] * tails[-1] / medians[-1])

    @property
    def max_batch(self) -> int:
        """The largest batch that was measured, in rows."""
        return self._batches[-1]

    @property
    def fixed_ms(self) -> float:
        """``a`` of ``l(n) = a + b n``: what a batch costs before its first row."""
        return self._line[0]

    @property
    def per_row_ms(self) -> float:
        """``b`` of ``l(n) = a + b n``: what one more row costs."""
        return self._line[1]

    def predict_ms(self, rows: int) -> float:
        """Median time of a batch of ``rows`` (1 or more), in milliseconds."""
        known = self._known_medians.get(rows)
        if known is None:
            known = _evaluate(self._batches, self._medians, self._line[1], rows)
            _keep(self._known_medians, rows, known)
        return known

    def bound_ms(self, rows: int) -> float:
        """Time that 99 of 100 batches of ``rows`` keep, in milliseconds; never below the median."""
        known = self._known_bounds.get(rows)
        if known is None:
            known = _evaluate(self._batches, self._tails, self._tail_slope, rows)
            _keep(self._known_bounds, rows, known)
        return known

    def scaled(self, factor: float, offset_ms: float = 0.0, tail: float = 1.0) -> LatencyProfile:
        """Every time ``t`` becomes ``offset_ms + factor * t``; the tail factor is multiplied by ``tail``."""
        points = tuple(
            ProfilePoint(
                p.batch,
                max(offset_ms + factor * p.median_ms, _SMALLEST_MS),
                max(offset_ms + factor * p.p99_ms, _SMALLEST_MS),
            )
            for p in self.points
        )
        return LatencyProfile(points, max(self.tail_factor * tail, 1.0))

    def to_json(self) -> dict[str, Any]:
        return {
            "points": [{"batch": p.batch, "median_ms": p.median_ms, "p99_ms": p.p99_ms} for p in self.points],
            "tail_factor": self.tail_factor,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LatencyProfile:
        """Raises :class:`ProfileError` for anything that :meth:`to_json` would not write."""
        try:
            points = tuple(
                ProfilePoint(int(p["batch"]), float(p["median_ms"]), float(p["p99_ms"]))
                for p in value["points"]
            )
            tail_factor = float(value.get("tail_factor", 1.0))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProfileError(f"not a latency profile: {error!r} in {str(value)[:120]}") from None
        return cls(points, tail_factor)


def fit(samples: Mapping[int, Sequence[float]], tail: float = TAIL_QUANTILE) -> LatencyProfile:
    """A profile from measured times: batch size (rows) -> durations in milliseconds.

    Noise can make a larger batch look faster than a smaller one; such neighbours are pooled to
    their weighted mean (isotonic regression), so the result is monotone and closest in squares.
    """
    if not samples:
        raise ProfileError("a latency profile needs measurements of at least one batch size")
    for batch, times in samples.items():
        if not times:
            raise ProfileError(f"batch size {batch} has no measurements")
    batches = sorted(samples)
    weights = [float(len(samples[b])) for b in batches]
    medians = _isotonic([quantile(samples[b], 0.5) for b in batches], weights)
    tails = _isotonic([quantile(samples[b], tail) for b in batches], weights)
    return LatencyProfile(
        tuple(
            ProfilePoint(b, max(m, _SMALLEST_MS), max(m, t, _SMALLEST_MS))
            for b, m, t in zip(batches, medians, tails, strict=True)
        )
    )


def quantile(values: Sequence[float], q: float) -> float:
    """The ``q`` quantile by linear interpolation between order statistics (numpy's default)."""
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


class OnlineFit:
    """Corrects a profile from live batches: ``live = offset + factor * profile``, and its tail.

    Weighted least squares with exponential forgetting (``half_life`` in batches), drawn to
    "as measured" by a prior worth ``prior`` batches: few samples change little, and a load that
    only ever runs one batch size still scales the whole profile sensibly. The tail is tracked by
    stochastic quantile approximation. Adding takes about a microsecond; ``profile`` is a value.
    """

    def __init__(
        self,
        profile: LatencyProfile,
        *,
        half_life: float = 64.0,
        prior: float = 8.0,
        tail: float = TAIL_QUANTILE,
    ) -> None:
        self._base = profile
        self._keep = 0.5 ** (1.0 / half_life)
        self._prior = prior
        self._tail = tail
        self._log_tail = 0.0
        self._weight = self._sx = self._sy = self._sxx = self._sxy = 0.0
        self.samples = 0

    def add(self, rows: int, ms: float) -> None:
        """One live batch of ``rows`` that took ``ms``. Values that are no duration are ignored."""
        if rows < 1 or not math.isfinite(ms) or ms <= 0:
            return
        base = self._base.predict_ms(rows)
        # In units of the prediction, so that a slow large batch does not drown the small ones.
        weight, keep = 1.0 / (base * base), self._keep
        self._weight = self._weight * keep + weight
        self._sx = self._sx * keep + weight * base
        self._sy = self._sy * keep + weight * ms
        self._sxx = self._sxx * keep + weight * base * base
        self._sxy = self._sxy * keep + weight * base * ms
        self.samples += 1
        self._track_tail(rows, ms)

    def _track_tail(self, rows: int, ms: float) -> None:
        offset, factor = self.correction()
        bound = max(offset + factor * self._base.bound_ms(rows), _SMALLEST_MS)
        above = math.log(ms / bound) > self._log_tail
        step = 0.05
        self._log_tail += step * (self._tail if above else self._tail - 1.0)
        self._log_tail = min(max(self._log_tail, 0.0), math.log(10.0))

    def correction(self) -> tuple[float, float]:
        """``(offset_ms, factor)`` of the present fit; (0, 1) before the first sample."""
        if not self.samples:
            return 0.0, 1.0
        # The prior holds the factor at the ratio of means and the offset at zero, and holds the
        # ratio itself at one while samples are few.
        seen = self._sxx  # equals the decayed number of samples, by the choice of weight
        ratio = (self._sxy + self._prior * 1.0) / (seen + self._prior)
        mean_x, mean_y = self._sx / self._weight, self._sy / self._weight
        var = self._sxx / self._weight - mean_x * mean_x
        cov = self._sxy / self._weight - mean_x * mean_y
        # Ridge towards ``ratio`` in the slope: with one batch size var is 0 and slope is ratio.
        ridge = self._prior / self._weight
        slope = max((cov + ridge * ratio) / (var + ridge), 0.05 * ratio)
        trust = seen / (seen + self._prior)
        return (mean_y - slope * mean_x) * trust, slope

    def profile(self) -> LatencyProfile:
        """The corrected profile."""
        if not self.samples:
            return self._base
        offset, factor = self.correction()
        return self._base.scaled(factor, offset, math.exp(self._log_tail))


def _validate(points: tuple[ProfilePoint, ...], tail_factor: float) -> None:
    if not points:
        raise ProfileError("a latency profile needs at least one point")
    if not (math.isfinite(tail_factor) and tail_factor >= 1):
        raise ProfileError(f"tail_factor must be 1 or more, got {tail_factor}")
    before: ProfilePoint | None = None
    for point in points:
        if point.batch < 1 or not 0 < point.median_ms <= point.p99_ms < math.inf:
            raise ProfileError(f"{point}: needs batch >= 1 and 0 < median_ms <= p99_ms, both finite")
        if before and (point.batch <= before.batch):
            raise ProfileError(f"batch {point.batch} after {before.batch}: points must ascend in batch")
        if before and (point.median_ms < before.median_ms or point.p99_ms < before.p99_ms):
            raise ProfileError(
                f"batch {point.batch} is faster than batch {before.batch}: make a profile with "
                "fit(), which pools such noise, instead of by hand"
            )
        before = point


def _keep(known: dict[int, float], rows: int, ms: float) -> None:
    if len(known) >= _MOST_KNOWN:
        known.clear()
    known[rows] = ms


def _evaluate(batches: tuple[int, ...], values: tuple[float, ...], slope: float, rows: int) -> float:
    """Piecewise linear through the points; before the first flat, after the last by ``slope``."""
    if rows >= batches[-1]:
        return values[-1] + slope * (rows - batches[-1])
    at = bisect_right(batches, rows)
    if at == 0:
        return values[0]
    low, high = batches[at - 1], batches[at]
    return values[at - 1] + (values[at] - values[at - 1]) * (rows - low) / (high - low)


def _fit_line(batches: tuple[int, ...], medians: tuple[float, ...]) -> tuple[float, float]:
    """Least squares of relative error for ``a + b n`` with ``a >= 0`` and ``b > 0``."""
    if len(batches) == 1:
        # One point says nothing about the share that is fixed: assume that every row costs in full,
        # which never promises too much.
        return 0.0, max(medians[0] / batches[0], _SMALLEST_SLOPE_MS)
    weights = [1.0 / (m * m) for m in medians]
    total = sum(weights)
    mean_n = sum(w * n for w, n in zip(weights, batches, strict=True)) / total
    mean_t = sum(w * t for w, t in zip(weights, medians, strict=True)) / total
    var = sum(w * (n - mean_n) ** 2 for w, n in zip(weights, batches, strict=True))
    cov = sum(w * (n - mean_n) * (t - mean_t) for w, n, t in zip(weights, batches, medians, strict=True))
    slope = max(cov / var, _SMALLEST_SLOPE_MS)
    fixed = mean_t - slope * mean_n
    if fixed < 0:
        fixed = 0.0
        slope = sum(w * n * t for w, n, t in zip(weights, batches, medians, strict=True)) / sum(
            w * n * n for w, n in zip(weights, batches, strict=True)
        )
    return fixed, slope


def _isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Pool adjacent violators: the nondecreasing sequence nearest in weighted squares."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        mean, total, count = value, weight, 1
        while blocks and blocks[-1][0] > mean:
            last_mean, last_total, last_count = blocks.pop()
            mean = (last_mean * last_total + mean * total) / (last_total + total)
            total, count = last_total + total, last_count + count
        blocks.append((mean, total, count))
    return [mean for mean, _, count in blocks for _ in range(count)]
