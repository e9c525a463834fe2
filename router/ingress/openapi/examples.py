"""For each model a request that works as it stands: a row that it was measured on, or one that fits. Pure."""

from __future__ import annotations

from typing import Any

from optimizers.tensors import TensorSpec
from router.service.requests import ServedModel


def example(model: ServedModel) -> dict[str, Any]:
    """The body of an inference request of one row."""
    rows = (m.notes["example"] for m in model.variants.values() if "example" in m.notes)
    kept: dict[str, Any] = next(rows, {})
    return {"inputs": [_entry(spec, kept.get(spec.name)) for spec in model.inputs]}


def _entry(spec: TensorSpec, kept: dict[str, Any] | None) -> dict[str, Any]:
    """One input. ``kept`` is a row from the data that the model was measured on: its shape and flat data."""
    if kept is None:
        shape = [1, *(max(1, size) if size < 0 else size for size in spec.shape[1:])]
        count = 1
        for size in shape:
            count *= size
        plain = {"BYTES": "text", "BOOL": False}.get(spec.datatype, 0)
        kept = {"shape": shape, "data": [plain] * count}
    return {"name": spec.name, "datatype": spec.datatype, "shape": kept["shape"], "data": kept["data"]}
