"""The Open Inference Protocol's bodies: JSON and the binary tensor extension, to tensors and back.

Bytes and values only: no HTTP, no status codes. Source: Open Inference Protocol v2 (REST) and its
binary tensor data extension.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from optimizers.tensors import (
    DTYPES,
    MAX_RANK,
    Array,
    TensorError,
    Tensors,
    TensorSpec,
    element_count,
    from_bytes,
    to_bytes,
)

HEADER_LENGTH = "inference-header-content-length"


class ProtocolError(ValueError):
    """A body that is not what the protocol says; the message names the member at fault."""


@dataclass(slots=True)
class InferRequest:
    """One decoded request. ``outputs`` is None where the caller asks for all; else name -> binary or not."""

    inputs: Tensors
    id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, bool] | None = None
    binary: bool = False


def decode(body: bytes, header_length: int | None) -> InferRequest:
    """A request from its body; ``header_length`` is the JSON part's length where binary data follows."""
    if header_length is not None and not 0 < header_length <= len(body):
        raise ProtocolError(f"{HEADER_LENGTH} is {header_length}, but the body has {len(body)} bytes")
    head = body if header_length is None else body[:header_length]
    try:
        message = orjson.loads(head)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"the body is not JSON: {error}") from None
    if not isinstance(message, dict) or not isinstance(message.get("inputs"), list):
        raise ProtocolError("the body must be a JSON object with a list 'inputs'")
    raw = _Raw(body, len(head))
    inputs: Tensors = {}
    for entry in message["inputs"]:
        name, array = _input(entry, raw)
        if name in inputs:
            raise ProtocolError(f"input {name!r} is given twice")
        inputs[name] = array
    if raw.left:
        raise ProtocolError(f"{raw.left} bytes follow the last binary input")
    parameters = _mapping(message.get("parameters"), "parameters")
    binary = parameters.get("binary_data_output") is True
    request_id = message.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise ProtocolError("'id' must be a string")
    outputs = message.get("outputs")
    wanted = None if not outputs else _outputs(outputs, binary)
    return InferRequest(inputs, request_id, parameters, wanted, binary)


class _Raw:
    """The binary part of a body, from ``at`` on, taken from the front; ``left`` counts what is not taken."""

    __slots__ = ("_body", "left")

    def __init__(self, body: bytes, at: int) -> None:
        self._body, self.left = memoryview(body), len(body) - at

    def take(self, size: int, name: str) -> memoryview:
        if size > self.left:
            raise ProtocolError(f"input {name!r} announces {size} binary bytes, {self.left} are left")
        at = len(self._body) - self.left
        self.left -= size
        return self._body[at : at + size]


def _mapping(value: Any, what: str, name: str = "") -> dict[str, Any]:
    """``value`` as a mapping; ``what`` says what it is, with ``name`` for ``{}``."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ProtocolError(f"{what.format(name)!r} must be a JSON object")
    return value


def _input(entry: Any, raw: _Raw) -> tuple[str, Array]:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ProtocolError("each input must be a JSON object with a 'name'")
    name, datatype, shape = entry["name"], entry.get("datatype"), entry.get("shape")
    if not isinstance(datatype, str) or datatype not in DTYPES:
        raise ProtocolError(
            f"input {name!r}: unknown datatype {reprlib.repr(datatype)}; known: {', '.join(DTYPES)}"
        )
    if not isinstance(shape, list) or not shape or len(shape) > MAX_RANK:
        raise ProtocolError(f"input {name!r}: 'shape' must be a list of 1 to {MAX_RANK} whole numbers")
    size = _mapping(entry.get("parameters"), "input {} parameters", name).get("binary_data_size")
    if size is not None:
        if type(size) is not int or size < 0:
            raise ProtocolError(f"input {name!r}: 'binary_data_size' must be a whole number of bytes")
        if "data" in entry:
            raise ProtocolError(f"input {name!r}: give 'data' or 'binary_data_size', not both")
        try:
            return name, from_bytes(raw.take(size, name), datatype, shape, name)
        except TensorError as error:
            raise ProtocolError(f"input {error}") from None
    if "data" not in entry:
        raise ProtocolError(f"input {name!r}: 'data' is missing")
    return name, _from_json(entry["data"], datatype, shape, name)


_KINDS = {"BOOL": "b", "FP16": "fiu", "BF16": "fiu", "FP32": "fiu", "FP64": "fiu", "BYTES": "OU"}


def _from_json(data: Any, datatype: str, shape: list[Any], name: str) -> Array:
    """An array from JSON data, nested or flat, without any silent cast between kinds."""
    if not isinstance(data, list):
        raise ProtocolError(f"input {name!r}: 'data' must be a list")
    dtype = DTYPES[datatype]
    try:
        count = element_count(shape, name)
        array = np.array(data, dtype=object) if datatype == "BYTES" else np.array(data)
    except TensorError as error:
        raise ProtocolError(f"input {error}") from None
    except (ValueError, OverflowError):
        raise ProtocolError(f"input {name!r}: 'data' is ragged or not of one kind") from None
    if array.size != count:
        raise ProtocolError(f"input {name!r}: shape {shape} does not hold {array.size} elements")
    if datatype == "BYTES":
        if any(type(item) is not str for item in array.ravel()):
            raise ProtocolError(f"input {name!r}: BYTES data in JSON must be strings")
        flat = np.empty(array.size, dtype=object)
        flat[:] = [item.encode() for item in array.ravel()]
        return flat.reshape(shape)
    if array.size and array.dtype.kind not in _KINDS.get(datatype, "iu"):
        raise ProtocolError(f"input {name!r}: 'data' does not fit datatype {datatype}")
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise ProtocolError(f"input {name!r}: values are out of the range of {datatype}")
    with np.errstate(over="ignore"):
        return array.astype(dtype).reshape(shape)


def _outputs(entries: Any, binary: bool) -> dict[str, bool]:
    if not isinstance(entries, list):
        raise ProtocolError("'outputs' must be a list")
    wanted: dict[str, bool] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise ProtocolError("each output must be a JSON object with a 'name'")
        parameters = _mapping(entry.get("parameters"), "output {} parameters", entry["name"])
        wanted[entry["name"]] = parameters.get("binary_data", binary) is True
    return wanted


def encode(
    outputs: Mapping[str, Array],
    specs: Sequence[TensorSpec],
    *,
    wanted: Mapping[str, bool] | None,
    binary: bool,
    envelope: dict[str, Any],
) -> tuple[bytes, int | None]:
    """A response body and, where binary data follows, the length of its JSON part.

    ``envelope`` holds the other members (model_name, model_version, id, parameters). ``wanted`` picks
    outputs and says which are binary; without it all go, binary or not by ``binary``.
    """
    entries, blobs = [], []
    for spec in specs:
        if wanted is not None and spec.name not in wanted:
            continue
        array = outputs[spec.name]
        entry: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": array.shape}
        if wanted[spec.name] if wanted is not None else binary:
            blob = to_bytes(array, spec.datatype)
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            entry["data"] = _to_json(array, spec)
        entries.append(entry)
    envelope["outputs"] = entries
    head = orjson.dumps(envelope, option=orjson.OPT_SERIALIZE_NUMPY)
    if not blobs:
        return head, None
    return b"".join((head, *blobs)), len(head)


def _to_json(array: Array, spec: TensorSpec) -> Any:
    if spec.datatype == "BYTES":
        try:
            return [item if isinstance(item, str) else bytes(item).decode() for item in array.ravel()]
        except UnicodeDecodeError:
            raise ProtocolError(
                f"output {spec.name!r} is not UTF-8 text; ask for it as binary data"
            ) from None
    if spec.datatype == "FP16":
        array = array.astype(np.float32)
    return np.ascontiguousarray(array).ravel()
