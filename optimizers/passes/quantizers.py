"""What the quantizing passes share. The elementary map is :func:`fake_quantize`."""

from __future__ import annotations

import fnmatch
import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from optimizers.formats import graphs
from optimizers.formats.errors import PassError
from optimizers.task import TaskModel
from optimizers.tensors import Array


def fake_quantize(values: ArrayLike, scale: float) -> Array:
    """``Q(x) = round(x * scale) / scale``: the nearest value on a grid of step ``1 / scale``.

    Halves round to even. No element moves by more than ``1 / (2 * scale)``, in exact arithmetic.

    >>> fake_quantize([1., 2., 3., 4.], scale=2).tolist()
    [1.0, 2.0, 3.0, 4.0]
    >>> fake_quantize([0.2, 0.3, 0.75], scale=2).tolist()
    [0.0, 0.5, 1.0]

    Raises ``ValueError`` unless ``scale`` is finite and above 0.
    """
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be finite and above 0, got {scale}")
    array = np.asarray(values)
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    return np.asarray(np.round(array * scale) / scale, dtype=array.dtype)


@contextmanager
def quiet() -> Iterator[None]:
    """The quantizers log and print advice and progress of their own; progress is ours to tell."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(before)


def check_has_integers(model: TaskModel) -> None:
    """Raise :class:`PassError` where the quantizer left everything float, so that nothing changed."""
    if model.form == "openvino":
        kinds = {op.get_type_name() for op in model.value.get_ops()}
    else:
        kinds = {node.op_type for node in graphs.nodes(model.value.graph)}
    if not any("Quantize" in kind or kind.endswith("Integer") for kind in kinds):
        raise PassError(
            "nothing was quantized: no operator that it takes has a constant weight and is not excluded. "
            "Where they stand in the bodies of If, Loop or Scan, use quantize_dynamic or quantize_weights"
        )


def matching_nodes(graph: Any, patterns: Sequence[str]) -> list[str]:
    """Nodes whose name matches a pattern. Raises :class:`PassError` for a pattern that none does."""
    names = [node.name for node in graphs.nodes(graph.graph)]
    found: set[str] = set()
    for pattern in patterns:
        hits = [n for n in names if n == pattern] or fnmatch.filter(names, pattern)
        if not hits:
            raise PassError(
                f"exclude: no layer is named like {pattern!r}; layers: {', '.join(names[:40])}"
                + (" ..." if len(names) > 40 else "")
            )
        found.update(hits)
    return sorted(found)
