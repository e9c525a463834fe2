"""Weight clustering in numpy: the values of a tensor replaced by a few shared ones, and indices.

k-means in one dimension (Han, Mao and Dally, "Deep compression", ICLR 2016): on sorted values a
cluster is an interval, so that a step costs a few binary searches and not a distance per value and
cluster. That, and determinism, is why scikit-learn's general KMeans is not used.
"""

from __future__ import annotations

import numpy as np

from optimizers.tensors import Array

_STEPS = 100

#: A tensor with this share of exact zeros was pruned: zero then keeps a value of its own.
_PRUNED = 0.1


def cluster_values(weights: Array, count: int) -> tuple[Array, Array]:
    """At most ``count`` (2 to 256) shared values, float32 ascending, and uint8 indices of ``weights``' shape.

    ``values[indices]`` is the clustered tensor. A tensor with no more distinct values than ``count``
    comes back exactly.

    >>> values, indices = cluster_values(np.array([0.9, 1.1, -1.0, 1.0, -1.0]), 2)
    >>> values.tolist(), indices.tolist()
    ([-1.0, 1.0], [1, 1, 0, 1, 0])
    """
    if not 2 <= count <= 256:
        raise ValueError(f"a code book has from 2 to 256 values, not {count}")
    flat = np.asarray(weights, dtype=np.float32).ravel()
    if not flat.size or not np.all(np.isfinite(flat)):
        raise ValueError(
            f"cannot cluster {flat.size} values, of which {np.sum(~np.isfinite(flat))} not finite"
        )
    distinct = np.unique(flat)
    if len(distinct) > count:
        zeros = float(np.mean(flat == 0)) >= _PRUNED
        ordered = np.sort(flat[flat != 0] if zeros else flat).astype(np.float64)
        found = _k_means(ordered, count - zeros)
        distinct = np.unique(np.append(found, 0) if zeros else found).astype(np.float32)
    indices = _nearest(distinct, flat)
    return distinct, indices.astype(np.uint8).reshape(np.shape(weights))


def _nearest(values: Array, flat: Array) -> Array:
    """The index of the nearest of ascending ``values``, for each of ``flat``."""
    middle = (values[1:].astype(np.float64) + values[:-1]) / 2
    return np.searchsorted(middle, flat, side="left")


def _k_means(ordered: Array, count: int) -> Array:
    """Centres for ascending values: Lloyd's steps from two starts, the one with less error kept."""
    starts = (
        np.linspace(ordered[0], ordered[-1], count),  # keeps large weights apart, which matter most
        np.quantile(ordered, (np.arange(count) + 0.5) / count),
    )
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    squares = np.concatenate([[0.0], np.cumsum(np.square(ordered))])
    best, least = starts[0], np.inf
    for centres in starts:
        for _ in range(_STEPS):
            ends = _ends(ordered, centres)
            sizes = np.diff(ends)
            moved = np.where(sizes > 0, np.diff(sums[ends]) / np.maximum(sizes, 1), centres)
            if np.array_equal(moved, centres):
                break
            centres = moved
        ends = _ends(ordered, centres)
        total, sizes = np.diff(sums[ends]), np.diff(ends)
        error = float(np.sum(np.diff(squares[ends]) - 2 * centres * total + sizes * np.square(centres)))
        if error < least:
            best, least = centres, error
    return best


def _ends(ordered: Array, centres: Array) -> Array:
    """Where each centre's interval of ``ordered`` ends: int ``[count + 1]``, from 0 to the length."""
    cuts = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2, side="right")
    return np.concatenate([[0], cuts, [len(ordered)]])


def pack_pairs(values: Array, indices: Array) -> tuple[Array, Array]:
    """Two indices below 16 in one byte: a table float32 ``[256, 2]``, and uint8 ``[size / 2]`` into it.

    The table holds both values of every pair, so that whoever can look up a row can unpack.
    """
    flat = indices.ravel()
    if len(values) > 16 or flat.size % 2:
        raise ValueError(f"{flat.size} indices into {len(values)} values do not go in pairs of half a byte")
    padded = np.zeros(16, dtype=np.float32)
    padded[: len(values)] = values
    table = np.stack([np.repeat(padded, 16), np.tile(padded, 16)], axis=1)
    return table, (flat[0::2] << 4 | flat[1::2]).astype(np.uint8)
