"""Raw tensors read and written in steps, where reading takes more than a look at the bytes: BYTES and BF16.

Pure. All other datatypes are views of the body, or one copy of the memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimizers.tensors import (
    DTYPES,
    Array,
    Buffer,
    TensorError,
    element_count,
    fill_bytes,
    from_bytes,
    to_bytes,
)
from router.ingress.codec.steps import STEP_BYTES, STEP_ITEMS, Steps


def read(buffer: Buffer, datatype: str, shape: Sequence[int], name: str) -> Steps[Array]:
    """What `from_bytes` gives."""
    if datatype not in ("BYTES", "BF16") or len(buffer) <= STEP_BYTES:
        return from_bytes(buffer, datatype, shape, name)
    count, view = element_count(shape, name), memoryview(buffer)
    if datatype == "BF16":
        if len(view) != 2 * count:
            return from_bytes(buffer, datatype, shape, name)  # says what is wrong
        wide = np.empty(count, DTYPES["BF16"])
        for start in range(0, count, STEP_BYTES):
            yield
            part = view[2 * start : 2 * (start + STEP_BYTES)]
            wide[start : start + STEP_BYTES] = from_bytes(part, "BF16", [len(part) // 2], name)
        return wide.reshape(tuple(shape))
    if 4 * count > len(view):
        return from_bytes(buffer, datatype, shape, name)
    items, at = np.empty(count, dtype=object), 0
    for start in range(0, count, STEP_ITEMS):
        yield
        at = fill_bytes(items, start, min(start + STEP_ITEMS, count), view, at, name)
    if at != len(view):
        raise TensorError(f"{name!r}: {len(view) - at} bytes follow the last of {count} BYTES elements")
    return items.reshape(tuple(shape))


def write(array: Array, datatype: str) -> Steps[Buffer]:
    """What `to_bytes` gives."""
    if datatype not in ("BYTES", "BF16") or array.size <= STEP_ITEMS:
        return to_bytes(array, datatype)
    flat, parts = array.ravel(), list[Buffer]()
    for start in range(0, len(flat), STEP_ITEMS):
        yield
        parts.append(to_bytes(flat[start : start + STEP_ITEMS], datatype))
    return b"".join(parts)
