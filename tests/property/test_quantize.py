"""Quantization error is bounded as the formulas say, for any values and any scale."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from optimizers.passes.integer_weights import quantize_array
from optimizers.passes.quantizers import fake_quantize
from optimizers.profile import LatencyProfile, OnlineFit, fit

VALUES = st.floats(-1e6, 1e6, allow_nan=False, width=64)
WEIGHTS = arrays(
    np.float32, array_shapes(min_dims=2, max_dims=3, max_side=12), elements=st.floats(-8, 8, width=32)
)
TIMES = st.dictionaries(
    st.integers(1, 512),
    st.lists(st.floats(0.01, 1e4, allow_nan=False), min_size=1, max_size=8),
    min_size=1,
    max_size=8,
)


@given(st.lists(VALUES, min_size=1, max_size=50), st.floats(1e-3, 1e4))
def test_no_element_moves_by_more_than_half_a_step(values: list[float], scale: float) -> None:
    rounding = 4 * np.finfo(np.float64).eps * np.max(np.abs(values))
    moved = np.abs(fake_quantize(values, scale) - np.array(values))
    assert np.all(moved <= 1 / (2 * scale) + rounding)


@given(st.lists(VALUES, min_size=1, max_size=50), st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0, 1024.0]))
def test_quantizing_twice_is_quantizing_once(values: list[float], scale: float) -> None:
    once = fake_quantize(values, scale)
    np.testing.assert_array_equal(fake_quantize(once, scale), once)
    np.testing.assert_array_equal(once * scale, np.round(once * scale))  # it is on the grid


@given(WEIGHTS, st.sampled_from([4, 8]), st.booleans(), st.booleans())
def test_integer_weights_are_within_half_a_scale_and_in_range(
    weights: np.ndarray, bits: int, symmetric: bool, per_channel: bool
) -> None:
    axes = tuple(range(1 if per_channel else 0, weights.ndim))
    integers, scale, zero = quantize_array(weights, bits, axes, symmetric)
    low, high = (-(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    assert integers.min() >= low and integers.max() <= high
    np.testing.assert_array_equal(integers, np.round(integers))
    error = np.abs((integers - zero) * scale - weights)
    # Affine: the zero point is itself rounded, so an end of the range may fall half a step further off.
    assert np.all(error <= scale * (0.5 if symmetric else 1.0) * (1 + 1e-9) + 1e-12)


@given(WEIGHTS, st.sampled_from([4, 8]), st.booleans())
def test_zero_stays_exactly_zero(weights: np.ndarray, bits: int, symmetric: bool) -> None:
    weights = weights.copy()
    weights.flat[0] = 0.0
    integers, scale, zero = quantize_array(weights, bits, tuple(range(weights.ndim)), symmetric)
    assert ((integers - zero) * scale).flat[0] == 0.0


@given(TIMES, st.integers(1, 2000), st.integers(1, 2000))
def test_a_profile_never_falls_with_the_batch(times: dict[int, list[float]], one: int, other: int) -> None:
    profile = fit(times)
    low, high = sorted((one, other))
    assert profile.predict_ms(low) <= profile.predict_ms(high) * (1 + 1e-12)
    assert profile.bound_ms(low) <= profile.bound_ms(high) * (1 + 1e-12)
    assert profile.bound_ms(low) >= profile.predict_ms(low) * (1 - 1e-12)


@given(TIMES)
def test_a_profile_survives_json(times: dict[int, list[float]]) -> None:
    profile = fit(times)
    assert LatencyProfile.from_json(profile.to_json()) == profile


@given(TIMES, st.lists(st.tuples(st.integers(1, 600), st.floats(0.001, 1e5)), max_size=60))
def test_live_batches_never_break_a_profile(
    times: dict[int, list[float]], live: list[tuple[int, float]]
) -> None:
    online = OnlineFit(fit(times))
    for rows, ms in live:
        online.add(rows, ms)
    corrected = online.profile()  # its own checks: positive, finite, ascending
    assert corrected.predict_ms(1) > 0
    assert corrected.predict_ms(600) >= corrected.predict_ms(1) * (1 - 1e-12)
