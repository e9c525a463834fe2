"""The Open Inference Protocol's bodies: JSON and the binary tensor extension, to tensors and back.

Bytes and values only: no HTTP, no status codes. Source: Open Inference Protocol v2 (REST) and its
binary tensor data extension.

Every datatype goes both ways in both forms. In JSON: a truth is no number and a number no truth, whole
numbers fit their datatype, FP16 and BF16 are decimal numbers rounded to the nearest that 16 bits hold (a
number beyond the largest is refused), BYTES are strings (UTF-8). JSON has no NaN, no infinity and no bytes
that are not text: an output that holds one is refused in JSON with a sentence that says to ask for binary
data, never turned to null.

Sizes are held before memory is spent on them: a shape is compared with the data that came before anything
is made of it, so a tensor takes at most a small multiple of its body.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from optimizers.tensors import (
    DTYPES,
    MAX_DIMENSION,
    MAX_RANK,
    Array,
    TensorError,
    Tensors,
    TensorSpec,
    element_count,
    from_bytes,
    to_bytes,
)
from router.service_errors import TooManyRows

HEADER_LENGTH = "inference-header-content-length"
#: Inputs, and outputs asked for, of one request.
MAX_TENSORS = 256
MAX_ID_CHARS = 1_000
MAX_NAME_CHARS = 256
MAX_PARAMETERS = 100
_SHOWN_CHARS = 40
_NESTED = frozenset({list, dict})


class ProtocolError(ValueError):
    """A body that is not what the protocol says; the message names the member at fault."""


def shown(value: Any) -> str:
    """A value from JSON in a sentence: as JSON has it, and short."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text: str = orjson.dumps(value[:_SHOWN_CHARS] if isinstance(value, str) else value).decode()
    cut = isinstance(value, str) and len(value) > _SHOWN_CHARS
    return text[:-1] + '..."' if cut else text


@dataclass(slots=True)
class InferRequest:
    """One decoded request. ``outputs`` is None where the caller asks for all; else name -> binary or not."""

    inputs: Tensors
    id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, bool] | None = None
    binary: bool = False


def decode(body: bytes, header_length: int | None, max_rows: int = MAX_DIMENSION) -> InferRequest:
    """A request from its body; ``header_length`` is the JSON part's length where binary data follows.

    Raises `ProtocolError`, and `TooManyRows` for an input of more than ``max_rows`` before any of it is read.
    """
    if header_length is not None and not 0 < header_length <= len(body):
        raise ProtocolError(f"{HEADER_LENGTH} is {header_length}, but the body has {len(body)} bytes")
    head = body if header_length is None else body[:header_length]
    try:
        message = orjson.loads(head)
    except orjson.JSONDecodeError as error:
        raise _not_json(error) from None
    if not isinstance(message, dict) or not isinstance(message.get("inputs"), list):
        raise ProtocolError("the body must be a JSON object with a list 'inputs'")
    if len(message["inputs"]) > MAX_TENSORS:
        raise ProtocolError(f"{len(message['inputs'])} inputs in one request, {MAX_TENSORS} are allowed")
    raw = _Raw(body, len(head))
    inputs: Tensors = {}
    for entry in message["inputs"]:
        name, array = _input(entry, raw, max_rows)
        if name in inputs:
            raise ProtocolError(f"input {name!r} is given twice")
        inputs[name] = array
    if raw.left:
        raise ProtocolError(f"{raw.left} bytes follow the last binary input")
    parameters = _parameters(message.get("parameters"))
    binary = parameters.get("binary_data_output") is True
    request_id = message.get("id")
    if request_id is not None and (not isinstance(request_id, str) or len(request_id) > MAX_ID_CHARS):
        raise ProtocolError(f"'id' must be a string of at most {MAX_ID_CHARS} characters")
    outputs = message.get("outputs")
    wanted = None if not outputs else _outputs(outputs, binary)
    return InferRequest(inputs, request_id, parameters, wanted, binary)


def _not_json(error: orjson.JSONDecodeError) -> ProtocolError:
    if "depth" in error.msg:
        return ProtocolError("the body is nested too deep; nothing in the protocol is")
    hint = f"where binary data follows, {HEADER_LENGTH} is the length of the JSON"
    return ProtocolError(f"the body is not JSON: {error}; {hint}")


def _parameters(value: Any) -> dict[str, Any]:
    """The request's parameters, whose values the protocol bounds to strings, numbers and truths."""
    parameters = _mapping(value, "parameters")
    if len(parameters) > MAX_PARAMETERS:
        raise ProtocolError(f"'parameters' has {len(parameters)} members, {MAX_PARAMETERS} are allowed")
    for name, given in parameters.items():
        if len(name) > MAX_NAME_CHARS:
            limit = f"{MAX_NAME_CHARS} are allowed"
            raise ProtocolError(f"parameter {shown(name)} has {len(name)} characters in its name, {limit}")
        if type(given) in _NESTED:
            raise ProtocolError(
                f"parameter {shown(name)} is {shown(given)}; send a string, a number, true or false"
            )
    return parameters


class _Raw:
    """The binary part of a body, from ``at`` on, taken from the front; ``left`` counts what is not taken."""

    __slots__ = ("_body", "_message", "_start", "_truths", "left")

    def __init__(self, body: bytes, at: int) -> None:
        self._message, self._start = body, at
        self._truths: bool | None = None
        self._body, self.left = memoryview(body), len(body) - at

    def may_hold_truths(self) -> bool:
        """Whether there is a true or a false in the JSON part: looked for once, and only if asked."""
        if self._truths is None:
            find, end = self._message.find, self._start
            self._truths = find(b"true", 0, end) >= 0 or find(b"false", 0, end) >= 0
        return self._truths

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


def _named(entry: Any, what: str) -> str:
    """The name of an input or output; ``what`` says which of both."""
    name = entry.get("name") if isinstance(entry, dict) else None
    if isinstance(name, str) and len(name) <= MAX_NAME_CHARS:
        return name
    if not isinstance(name, str):
        raise ProtocolError(f"each {what} must be a JSON object with a 'name'")
    limit = f"{MAX_NAME_CHARS} are allowed"
    raise ProtocolError(f"{what} {shown(name)} has {len(name)} characters in its name, {limit}")


def _input(entry: Any, raw: _Raw, max_rows: int) -> tuple[str, Array]:
    name = _named(entry, "input")
    datatype, shape = entry.get("datatype"), entry.get("shape")
    if not isinstance(datatype, str) or datatype not in DTYPES:
        raise ProtocolError(f"input {name!r}: unknown datatype {shown(datatype)}; known: {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not shape or len(shape) > MAX_RANK:
        raise ProtocolError(f"input {name!r}: 'shape' must be a list of 1 to {MAX_RANK} whole numbers")
    if type(shape[0]) is int and max_rows < shape[0] <= MAX_DIMENSION:
        raise TooManyRows(f"{shape[0]} rows in one request; the policy's limits.rows is {max_rows}")
    size = _mapping(entry.get("parameters"), "input {} parameters", name).get("binary_data_size")
    if size is None:
        if "data" not in entry:
            raise ProtocolError(f"input {name!r}: 'data' is missing")
        return name, _from_json(entry["data"], datatype, shape, name, raw)
    if type(size) is not int or size < 0:
        raise ProtocolError(f"input {name!r}: 'binary_data_size' must be a whole number of bytes")
    if "data" in entry:
        raise ProtocolError(f"input {name!r}: give 'data' or 'binary_data_size', not both")
    try:
        return name, from_bytes(raw.take(size, name), datatype, shape, name)
    except TensorError as error:
        raise ProtocolError(f"input {error}") from None


_KINDS = {"BOOL": "b", "FP16": "fiu", "BF16": "fiu", "FP32": "fiu", "FP64": "fiu", "BYTES": "OU"}


def _from_json(data: Any, datatype: str, shape: list[Any], name: str, raw: _Raw) -> Array:
    """An array from JSON data, nested or flat, without any silent cast between kinds."""
    if not isinstance(data, list):
        raise ProtocolError(f"input {name!r}: 'data' must be a list")
    try:
        count = element_count(shape, name)
        if _depth(data) > MAX_RANK:
            raise TensorError(f"{name!r}: 'data' is nested deeper than the {MAX_RANK} axes that are allowed")
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
    kind = array.dtype.kind
    if kind == "f" and datatype == "UINT64" and _kinds(data) == {int}:
        array = _large(data, name)  # numpy takes whole numbers on both sides of 2**63 for floats
        kind = "u"
    if array.size and kind not in _KINDS.get(datatype, "iu"):
        raise ProtocolError(f"input {name!r}: 'data' does not fit datatype {datatype}")
    # numpy takes a true among numbers for a 1.
    if kind != "b" and raw.may_hold_truths() and bool in _kinds(data):
        raise ProtocolError(f"input {name!r}: 'data' holds true or false among the numbers of {datatype}")
    return _cast(array, datatype, name).reshape(shape)


def _depth(data: Any) -> int:
    """How deep a list is nested, by its first elements; an uneven one is found out later."""
    depth = 0
    while isinstance(data, list) and depth <= MAX_RANK:
        depth += 1
        data = data[0] if data else None
    return depth


def _kinds(data: list[Any]) -> set[type]:
    """What evenly nested lists hold: int, float, bool."""
    if data and isinstance(data[0], list):
        return set().union(*map(_kinds, data))
    return set(map(type, data))


def _large(data: list[Any], name: str) -> Array:
    try:
        return np.array(data, dtype="<u8")
    except OverflowError:
        raise ProtocolError(f"input {name!r}: values are out of the range of UINT64") from None


def _cast(array: Array, datatype: str, name: str) -> Array:
    """Numbers as ``datatype`` holds them; refused where it cannot."""
    dtype = DTYPES[datatype]
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise ProtocolError(f"input {name!r}: values are out of the range of {datatype}")
    try:
        with np.errstate(over="raise"):
            cast = array.astype(dtype)
    except FloatingPointError:
        raise ProtocolError(f"input {name!r}: values are out of the range of {datatype}") from None
    if datatype == "BF16":
        cast = from_bytes(to_bytes(cast, "BF16"), "BF16", cast.shape, name)
        if not np.isfinite(cast).all():
            raise ProtocolError(f"input {name!r}: values are out of the range of {datatype}")
    return cast


def _outputs(entries: Any, binary: bool) -> dict[str, bool]:
    if not isinstance(entries, list):
        raise ProtocolError("'outputs' must be a list")
    if len(entries) > MAX_TENSORS:
        raise ProtocolError(f"{len(entries)} outputs in one request, {MAX_TENSORS} are allowed")
    wanted: dict[str, bool] = {}
    for entry in entries:
        name = _named(entry, "output")
        parameters = _mapping(entry.get("parameters"), "output {} parameters", name)
        wanted[name] = parameters.get("binary_data", binary) is True
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
    outputs and says which are binary; without it all go, binary or not by ``binary``. Raises `ProtocolError`
    for an output that JSON cannot carry: NaN, infinity, bytes that are not UTF-8.
    """
    entries, blobs, numbers = [], [], []
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
            entry["data"] = data = _to_json(array, spec)
            numbers.append((spec.name, data))
        entries.append(entry)
    envelope["outputs"] = entries
    head = orjson.dumps(envelope, option=orjson.OPT_SERIALIZE_NUMPY)
    if b"null" in head:  # what is not a number is written so; a text that says it costs a look
        _check_finite(numbers)
    if not blobs:
        return head, None
    return b"".join((head, *blobs)), len(head)


def _check_finite(outputs: Sequence[tuple[str, Any]]) -> None:
    for name, data in outputs:
        if isinstance(data, np.ndarray) and data.dtype.kind == "f" and not np.isfinite(data).all():
            reason = "NaN or infinity, which JSON has no word for"
            raise ProtocolError(f"output {name!r} holds {reason}; ask for it as binary data")


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
    elif spec.datatype == "BF16":  # the same values as in binary
        array = from_bytes(to_bytes(array, "BF16"), "BF16", array.shape, spec.name)
    return np.ascontiguousarray(array).ravel()
