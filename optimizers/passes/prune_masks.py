"""Which weights stay: masks that keep a set of the greatest importance, in several patterns.

Pure: arrays of importance in, boolean masks out (True: the weight stays). What importance is, and
the training between, is for :mod:`optimizers.passes.importance` and :mod:`optimizers.passes.prune`;
whole channels are removed by :mod:`optimizers.passes.prune_channels`. torch's own ``torch.nn.utils.prune``
has neither N:M nor blocks nor importance by gradient, so the masks are worked out here.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from optimizers.formats.errors import PassError
from optimizers.tensors import Array


class PruneError(PassError):
    """A pattern or a share that cannot be kept. The message says which and why."""


def top_k(importance: Array, keep: int) -> Array:
    """True at the ``keep`` greatest of ``importance``, of any shape; of equals the first stay.

    >>> top_k(np.array([[3.0, 1.0], [2.0, 3.0]]), 2).tolist()
    [[True, False], [False, True]]
    """
    flat = np.asarray(importance, dtype=np.float64).ravel()
    if not 0 <= keep <= flat.size:
        raise PruneError(f"cannot keep {keep} of {flat.size} weights")
    if np.isnan(flat).any():
        raise PruneError("an importance is not a number: look for a weight or a gradient that is NaN")
    mask = np.zeros(flat.size, dtype=np.bool_)
    mask[np.argsort(-flat, kind="stable")[:keep]] = True
    return mask.reshape(np.shape(importance))


def keep_of(size: int, sparsity: float) -> int:
    """How many of ``size`` weights stay at ``sparsity``: the share removed is never above it."""
    if not 0 <= sparsity < 1:
        raise PruneError(f"sparsity is a share from 0 to less than 1, not {sparsity}")
    return size - int(size * sparsity + 1e-9)


def unstructured(importance: Mapping[str, Array], sparsity: float, *, everywhere: bool) -> dict[str, Array]:
    """A mask per tensor. ``everywhere`` ranks all tensors together, else each keeps its own share."""
    if not everywhere:
        return {name: top_k(scores, keep_of(scores.size, sparsity)) for name, scores in importance.items()}
    flat = np.concatenate([scores.ravel() for scores in importance.values()])
    mask = top_k(flat, keep_of(flat.size, sparsity))
    ends = np.cumsum([scores.size for scores in importance.values()])[:-1]
    parts = np.split(mask, ends)
    return {name: part.reshape(importance[name].shape) for name, part in zip(importance, parts, strict=True)}


def n_of_m(importance: Array, n: int, m: int) -> Array:
    """True at the ``n`` greatest of every ``m`` in a row along the last axis, whose length m divides.

    2 of 4 is the pattern that NVIDIA's sparse tensor cores run (Mishra et al., "Accelerating sparse
    deep neural networks", 2021); the last axis is the one that a matrix product sums over.

    >>> n_of_m(np.array([[4.0, 1.0, 3.0, 2.0, 0.0, 0.0, 0.0, 9.0]]), 2, 4).astype(int).tolist()
    [[1, 0, 1, 0, 1, 0, 0, 1]]
    """
    if not 0 < n < m:
        raise PruneError(f"{n} of {m} is no pattern: keep fewer than there are, and at least one")
    if importance.shape[-1] % m:
        raise PruneError(f"{m} does not divide the last axis of {importance.shape}")
    rows = np.asarray(importance, dtype=np.float64).reshape(-1, m)
    order = np.argsort(-rows, axis=1, kind="stable")[:, :n]
    mask = np.zeros(rows.shape, dtype=np.bool_)
    np.put_along_axis(mask, order, True, axis=1)
    return mask.reshape(importance.shape)


def blocks(importance: Array, sparsity: float, block: tuple[int, int]) -> Array:
    """Whole blocks of a matrix stay or go, by their mean importance; those at the edge may be smaller.

    Blocks, not weights, are counted: ``sparsity`` is the share of blocks removed.
    """
    if importance.ndim != 2 or min(block) < 1:
        raise PruneError(f"blocks {block} are cut from a matrix, not from shape {importance.shape}")
    edges = [np.arange(0, size, step) for size, step in zip(importance.shape, block, strict=True)]
    total = np.add.reduceat(np.add.reduceat(importance.astype(np.float64), edges[0], 0), edges[1], 1)
    sizes = [np.diff(np.append(e, size)) for e, size in zip(edges, importance.shape, strict=True)]
    mean = total / np.outer(sizes[0], sizes[1])
    mask = top_k(mean, keep_of(mean.size, sparsity))
    whole: Array = np.repeat(np.repeat(mask, sizes[0], axis=0), sizes[1], axis=1)
    return whole


def sparsity_at(step: int, steps: int, final: float, schedule: str) -> float:
    """The sparsity wanted after update ``step`` of ``steps``, counted from 1.

    ``constant``: ``final`` from the first on. ``polynomial``: ``final * (1 - (1 - step/steps)^3)``,
    fast while there is much to spare and slow at the end (Zhu and Gupta, "To prune, or not to
    prune", 2017).

    >>> [round(sparsity_at(i, 4, 0.8, "polynomial"), 2) for i in (1, 2, 3, 4)]
    [0.46, 0.7, 0.79, 0.8]
    """
    if not 1 <= step <= steps:
        raise PruneError(f"update {step} is not one of {steps}")
    if schedule == "constant":
        return final
    if schedule == "polynomial":
        return final * (1 - (1 - step / steps) ** 3)
    raise PruneError(f"schedule {schedule!r} is neither constant nor polynomial")


def as_matrix(weight: Array) -> Array:
    """A weight ``[out, in, ...]`` as ``[out, ... * in]``: the sum's axis last, input channels innermost."""
    return np.moveaxis(weight, 1, -1).reshape(len(weight), -1)


def from_matrix(matrix: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of :func:`as_matrix` for a weight of ``shape``."""
    moved = matrix.reshape(shape[0], *shape[2:], shape[1])
    return np.moveaxis(moved, -1, 1)
