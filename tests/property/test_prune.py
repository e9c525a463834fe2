"""The formulas of pruning, for any importance: the greatest stay, N:M and blocks keep their pattern."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from optimizers.passes import prune_masks
from optimizers.tensors import Array

SCORES = arrays(np.float64, array_shapes(max_dims=4, max_side=8), elements=st.floats(0, 1e6))
SPARSITY = st.floats(0, 0.99)


@given(SCORES, st.data())
def test_top_k_keeps_exactly_the_greatest(scores: Array, data: st.DataObject) -> None:
    keep = data.draw(st.integers(0, scores.size))
    mask = prune_masks.top_k(scores, keep)
    assert mask.shape == scores.shape and mask.sum() == keep
    if 0 < keep < scores.size:
        assert scores[mask].min() >= scores[~mask].max()


@given(SCORES, SCORES, SPARSITY)
def test_unstructured_removes_its_share_everywhere_or_per_layer(a: Array, b: Array, sparsity: float) -> None:
    together = prune_masks.unstructured({"a": a, "b": b}, sparsity, everywhere=True)
    removed = sum(int((~mask).sum()) for mask in together.values())
    assert removed == pytest.approx((a.size + b.size) * sparsity, abs=1)
    assert removed <= (a.size + b.size) * sparsity + 1e-6
    apart = prune_masks.unstructured({"a": a, "b": b}, sparsity, everywhere=False)
    for name, scores in (("a", a), ("b", b)):
        assert apart[name].shape == scores.shape
        assert (~apart[name]).sum() == pytest.approx(scores.size * sparsity, abs=1)


@given(st.integers(2, 8).flatmap(lambda m: st.tuples(st.just(m), st.integers(1, m - 1))), st.data())
def test_n_of_m_keeps_the_n_greatest_of_each_group(pattern: tuple[int, int], data: st.DataObject) -> None:
    m, n = pattern
    scores = data.draw(arrays(np.float64, (3, 4 * m), elements=st.floats(0, 100)))
    groups, kept = scores.reshape(-1, m), prune_masks.n_of_m(scores, n, m).reshape(-1, m)
    assert (kept.sum(axis=1) == n).all()
    for group, mask in zip(groups, kept, strict=True):
        assert group[mask].min() >= group[~mask].max()


@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    SPARSITY,
    st.data(),
)
def test_blocks_stay_or_go_whole(
    shape: tuple[int, int], block: tuple[int, int], sparsity: float, data: st.DataObject
) -> None:
    scores = data.draw(arrays(np.float64, shape, elements=st.floats(0, 100)))
    mask = prune_masks.blocks(scores, sparsity, block)
    assert mask.shape == shape
    kept: list[float] = []
    gone: list[float] = []
    for top in range(0, shape[0], block[0]):
        for left in range(0, shape[1], block[1]):
            where = np.s_[top : top + block[0], left : left + block[1]]
            assert mask[where].all() or not mask[where].any()
            (kept if mask[where].all() else gone).append(float(scores[where].mean()))
    assert len(gone) == pytest.approx((len(kept) + len(gone)) * sparsity, abs=1)
    if kept and gone:
        assert min(kept) >= max(gone) - 1e-9


@given(st.integers(1, 50), st.floats(0.01, 0.99), st.sampled_from(["constant", "polynomial"]))
def test_schedule_never_falls_and_ends_at_its_goal(steps: int, final: float, schedule: str) -> None:
    wanted = [prune_masks.sparsity_at(step, steps, final, schedule) for step in range(1, steps + 1)]
    assert wanted == sorted(wanted)
    assert wanted[-1] == pytest.approx(final) and wanted[0] >= 0
