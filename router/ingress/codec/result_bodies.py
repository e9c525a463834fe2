"""Results as bodies of the Open Inference Protocol: JSON, and the binary tensor extension. Pure.

Answers are strict JSON. A large list is written in steps, and in pieces of `STEP_ITEMS` elements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from optimizers.tensors import Array, Buffer, TensorSpec, from_bytes, to_bytes
from router.ingress.codec import tensor_steps
from router.ingress.codec.json_data import MalformedRequest
from router.ingress.codec.steps import STEP_ITEMS, Steps, finish


def encode(
    outputs: Mapping[str, Array],
    specs: Sequence[TensorSpec],
    *,
    wanted: Mapping[str, bool] | None,
    binary: bool,
    envelope: dict[str, Any],
) -> tuple[bytes, int | None]:
    """A response body in one go: the result of `encode_steps`."""
    return finish(encode_steps(outputs, specs, wanted=wanted, binary=binary, envelope=envelope))


def encode_steps(
    outputs: Mapping[str, Array],
    specs: Sequence[TensorSpec],
    *,
    wanted: Mapping[str, bool] | None,
    binary: bool,
    envelope: dict[str, Any],
) -> Steps[tuple[bytes, int | None]]:
    """A response body and, where binary data follows, the length of its JSON part.

    ``envelope`` holds the other members (model_name, model_version, id, parameters). ``wanted`` picks
    outputs and says which are binary; without it all go, binary or not by ``binary``. Raises
    `MalformedRequest` for an output that JSON cannot carry: NaN, infinity, bytes that are not UTF-8.
    """
    entries: list[dict[str, Any]] = []
    blobs: list[Buffer] = []
    numbers: list[tuple[str, Any]] = []
    long: dict[int, bytes] = {}
    for spec in specs:
        if wanted is not None and spec.name not in wanted:
            continue
        array = outputs[spec.name]
        entry: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": array.shape}
        if wanted[spec.name] if wanted is not None else binary:
            blob = yield from tensor_steps.write(array, spec.datatype)
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        elif array.size > STEP_ITEMS:
            long[len(entries)] = yield from _json_list(array, spec)
        else:
            entry["data"] = data = _to_json(array.ravel(), spec)
            numbers.append((spec.name, data))
        entries.append(entry)
    if long:
        head = _joined(envelope, [_dumps(entry) for entry in entries], long)
    else:  # in one call, which takes a third of the time
        envelope["outputs"] = entries
        head = _dumps(envelope)
    if b"null" in head:  # what is not a number is written so; a text that says it costs a look
        _check_finite(numbers)
    if not blobs:
        return head, None
    return b"".join((head, *blobs)), len(head)


def _dumps(value: Any) -> bytes:
    written: bytes = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return written


def _joined(envelope: Mapping[str, Any], entries: list[bytes], long: Mapping[int, bytes]) -> bytes:
    """The JSON part, where the data of the entries in ``long`` are written already."""
    for index, data in long.items():
        entries[index] = b"".join((entries[index][:-1], b',"data":', data, b"}"))
    others = _dumps(envelope)[1:-1]
    return b"".join((b"{", others, b"," if others else b"", b'"outputs":[', b",".join(entries), b"]}"))


def _check_finite(outputs: Sequence[tuple[str, Any]]) -> None:
    for name, data in outputs:
        if isinstance(data, np.ndarray) and data.dtype.kind == "f" and not np.isfinite(data).all():
            reason = "NaN or infinity, which JSON has no word for"
            raise MalformedRequest(f"output {name!r} holds {reason}; ask for it as binary data")


def _json_list(array: Array, spec: TensorSpec) -> Steps[bytes]:
    """A long array as a JSON list."""
    flat, parts = array.ravel(), list[bytes]()
    for start in range(0, flat.size, STEP_ITEMS):
        yield
        data = _to_json(flat[start : start + STEP_ITEMS], spec)
        _check_finite([(spec.name, data)])
        parts.append(_dumps(data)[1:-1])
    return b"".join((b"[", b",".join(parts), b"]"))


def _to_json(array: Array, spec: TensorSpec) -> Any:
    """A flat array as orjson writes it."""
    if spec.datatype == "BYTES":
        try:
            return [item if isinstance(item, str) else bytes(item).decode() for item in array]
        except UnicodeDecodeError:
            raise MalformedRequest(
                f"output {spec.name!r} is not UTF-8 text; ask for it as binary data"
            ) from None
    if spec.datatype == "FP16":
        array = array.astype(np.float32)
    elif spec.datatype == "BF16":  # the same values as in binary
        array = from_bytes(to_bytes(array, "BF16"), "BF16", array.shape, spec.name)
    return np.ascontiguousarray(array)
