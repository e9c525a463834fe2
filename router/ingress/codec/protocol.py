"""The Open Inference Protocol's bodies: JSON and the binary tensor extension, to tensors and back.

Bytes and values only: no HTTP, no status codes. Source: Open Inference Protocol v2 (REST) and its
binary tensor data extension.

Every datatype goes both ways in both forms. In JSON: a truth is no number and a number no truth, whole
numbers fit their datatype, FP16 and BF16 are decimal numbers rounded to the nearest that 16 bits hold (a
number beyond the largest is refused), BYTES are strings (UTF-8). Inputs may hold ``NaN``, ``Infinity`` and
``-Infinity`` for floating-point datatypes, as Triton's clients and Python's ``json`` write them. Answers are
strict JSON, which has none of them and no bytes that are not text: an output that holds one is refused in
JSON with a sentence that says to ask for binary data, never turned to null.

What a request declares is compared with the model before its data are read, and a shape with the data that
came before anything is made of it, so a tensor takes at most a small multiple of its body. Large bodies and
large answers are worked on in steps (`router.ingress.codec.steps`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from optimizers.tensors import (
    DTYPES,
    MAX_DIMENSION,
    MAX_RANK,
    Array,
    TensorError,
    Tensors,
    TensorSpec,
    check_declared,
    element_count,
)
from router.ingress.codec import json_slices, tensor_steps
from router.ingress.codec.json_data import MalformedRequest as MalformedRequest
from router.ingress.codec.json_data import array_of
from router.ingress.codec.json_data import excerpt as excerpt
from router.ingress.codec.json_slices import Parts
from router.ingress.codec.not_offered import REQUEST, TENSOR, refuse
from router.ingress.codec.result_bodies import encode as encode
from router.ingress.codec.result_bodies import encode_steps as encode_steps
from router.ingress.codec.steps import Steps, finish
from router.service.errors import TooManyRows

HEADER_LENGTH = "inference-header-content-length"
#: Inputs, and outputs asked for, of one request.
MAX_TENSORS = 256
MAX_ID_CHARS = 1_000
MAX_NAME_CHARS = 256
MAX_PARAMETERS = 100
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NESTED = frozenset({list, dict})


@dataclass(slots=True)
class DecodedBody:
    """One decoded request. ``outputs`` is None where the caller asks for all; else name -> binary or not."""

    inputs: Tensors
    id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, bool] | None = None
    binary: bool = False


def decode(
    body: bytes,
    header_length: int | None,
    max_rows: int = MAX_DIMENSION,
    specs: Sequence[TensorSpec] | None = None,
) -> DecodedBody:
    """A request from its body, in one go: the result of `decode_steps`."""
    return finish(decode_steps(body, header_length, max_rows, specs))


def decode_steps(
    body: bytes,
    header_length: int | None,
    max_rows: int = MAX_DIMENSION,
    specs: Sequence[TensorSpec] | None = None,
) -> Steps[DecodedBody]:
    """A request from its body; ``header_length`` is the JSON part's length where binary data follows.

    ``specs`` are the model's inputs: what names, datatypes and shapes the request declares is compared with
    them, and with ``max_rows``, before any data are read. Raises `MalformedRequest`, `TooManyRows`, and
    `TensorError` for inputs that are not the model's.
    """
    if header_length is not None and not 0 < header_length <= len(body):
        raise MalformedRequest(f"{HEADER_LENGTH} is {header_length}, but the body has {len(body)} bytes")
    head = body if header_length is None else body[:header_length]
    try:
        parts = yield from json_slices.parts(head.removeprefix(_BYTE_ORDER_MARK))
    except MalformedRequest:
        raise
    except ValueError as error:
        raise _not_json(error, header_length) from None
    message = parts.message
    if not isinstance(message, dict) or not isinstance(message.get("inputs"), list):
        raise MalformedRequest("the body must be a JSON object with a list 'inputs'")
    if len(message["inputs"]) > MAX_TENSORS:
        raise MalformedRequest(f"{len(message['inputs'])} inputs in one request, {MAX_TENSORS} are allowed")
    parameters = _parameters(message.get("parameters"))
    binary = _truth(parameters, "binary_data_output", "parameter binary_data_output")
    request_id = message.get("id")
    if request_id is not None and (not isinstance(request_id, str) or len(request_id) > MAX_ID_CHARS):
        raise MalformedRequest(f"'id' must be a string of at most {MAX_ID_CHARS} characters")
    outputs = message.get("outputs")
    wanted = None if not outputs else _outputs(outputs, binary)
    declared = _declared(message["inputs"], max_rows, specs)
    raw = _Raw(body, len(head))
    inputs: Tensors = {}
    for one in declared:
        inputs[one.name] = yield from _data(one, raw, parts)
    if raw.left:
        raise MalformedRequest(f"{raw.left} bytes follow the last binary input")
    return DecodedBody(inputs, request_id, parameters, wanted, binary)


def _not_json(error: ValueError, header_length: int | None) -> MalformedRequest:
    reason = str(error)
    if "depth" in reason or "deep" in reason:
        return MalformedRequest("the body is nested too deep; nothing in the protocol is")
    problem = f"the body is not JSON: {reason[:150]}"
    if header_length is None:
        problem += f"; where binary data follows, {HEADER_LENGTH} is the length of the JSON"
    return MalformedRequest(problem)


def _parameters(value: Any) -> dict[str, Any]:
    """The request's parameters, whose values the protocol bounds to strings, numbers and truths."""
    parameters = _mapping(value, "parameters")
    if len(parameters) > MAX_PARAMETERS:
        raise MalformedRequest(f"'parameters' has {len(parameters)} members, {MAX_PARAMETERS} are allowed")
    for name, given in parameters.items():
        if len(name) > MAX_NAME_CHARS:
            limit = f"{MAX_NAME_CHARS} are allowed"
            raise MalformedRequest(
                f"parameter {excerpt(name)} has {len(name)} characters in its name, {limit}"
            )
        if type(given) in _NESTED:
            raise MalformedRequest(
                f"parameter {excerpt(name)} is {excerpt(given)}; send a string, a number, true or false"
            )
        if type(given) is float and not math.isfinite(given):
            raise MalformedRequest(f"parameter {excerpt(name)} is {excerpt(given)}, which is no number")
    refuse(parameters, REQUEST, "the request")
    return parameters


def _truth(parameters: Mapping[str, Any], name: str, what: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise MalformedRequest(f"{what} is {excerpt(value)}; it must be true or false")
    return value


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
            raise MalformedRequest(f"input {name!r} announces {size} binary bytes, {self.left} are left")
        at = len(self._body) - self.left
        self.left -= size
        return self._body[at : at + size]


def _mapping(value: Any, what: str, name: str = "") -> dict[str, Any]:
    """``value`` as a mapping; ``what`` says what it is, with ``name`` for ``{}``."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MalformedRequest(f"{what.format(name)!r} must be a JSON object")
    return value


def _named(entry: Any, what: str) -> str:
    """The name of an input or output; ``what`` says which of both."""
    name = entry.get("name") if isinstance(entry, dict) else None
    if isinstance(name, str) and len(name) <= MAX_NAME_CHARS:
        return name
    if not isinstance(name, str):
        raise MalformedRequest(f"each {what} must be a JSON object with a 'name'")
    limit = f"{MAX_NAME_CHARS} are allowed"
    raise MalformedRequest(f"{what} {excerpt(name)} has {len(name)} characters in its name, {limit}")


class _Declared(NamedTuple):
    """What a request says of one input, before its data are read."""

    name: str
    datatype: str
    shape: list[int]
    elements: int
    entry: Mapping[str, Any]
    binary_bytes: int | None


def _declared(entries: list[Any], max_rows: int, specs: Sequence[TensorSpec] | None) -> Sequence[_Declared]:
    """All inputs of a request; refused where they are not what the protocol or the model takes."""
    declared: dict[str, _Declared] = {}
    for entry in entries:
        one = _declare(entry, max_rows)
        if one.name in declared:
            raise MalformedRequest(f"input {one.name!r} is given twice")
        declared[one.name] = one
    if specs is not None:
        check_declared({one.name: (one.datatype, one.shape) for one in declared.values()}, specs)
    return list(declared.values())


def _declare(entry: Any, max_rows: int) -> _Declared:
    name = _named(entry, "input")
    datatype, shape = entry.get("datatype"), entry.get("shape")
    if not isinstance(datatype, str) or datatype not in DTYPES:
        raise MalformedRequest(
            f"input {name!r}: unknown datatype {excerpt(datatype)}; known: {', '.join(DTYPES)}"
        )
    if not isinstance(shape, list) or not shape or len(shape) > MAX_RANK:
        raise MalformedRequest(f"input {name!r}: 'shape' must be a list of 1 to {MAX_RANK} whole numbers")
    if type(shape[0]) is int and max_rows < shape[0] <= MAX_DIMENSION:
        raise TooManyRows(f"{shape[0]} rows in one request; the policy's limits.rows is {max_rows}")
    parameters = _mapping(entry.get("parameters"), "input {} parameters", name)
    refuse(parameters, TENSOR, f"input {name!r}")
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in entry:
            raise MalformedRequest(f"input {name!r}: 'data' is missing")
    elif type(size) is not int or size < 0:
        raise MalformedRequest(f"input {name!r}: 'binary_data_size' must be a whole number of bytes")
    elif "data" in entry:
        raise MalformedRequest(f"input {name!r}: give 'data' or 'binary_data_size', not both")
    try:
        count = element_count(shape, name)
    except TensorError as error:
        raise MalformedRequest(f"input {error}") from None
    return _Declared(name, datatype, shape, count, entry, size)


def _data(one: _Declared, raw: _Raw, parts: Parts) -> Steps[Array]:
    """The data of one input, in the shape that it declares."""
    if one.binary_bytes is not None:
        try:
            taken = raw.take(one.binary_bytes, one.name)
            return (yield from tensor_steps.read(taken, one.datatype, one.shape, one.name))
        except TensorError as error:
            raise MalformedRequest(f"input {error}") from None
    data = one.entry["data"]
    cut = parts.cut_at(data)
    if cut is not None:
        if cut.count != one.elements:
            raise _other_count(one, cut.count)
        array = yield from parts.array(cut, one.datatype, one.elements, one.name)
        return array.reshape(one.shape)
    if not isinstance(data, list):
        raise MalformedRequest(f"input {one.name!r}: 'data' must be a list")
    if _depth(data) > MAX_RANK:
        raise MalformedRequest(
            f"input {one.name!r}: 'data' is nested deeper than the {MAX_RANK} axes that are allowed"
        )
    array = array_of(data, one.datatype, one.name, truths=raw.may_hold_truths())
    if array.size != one.elements:
        raise _other_count(one, array.size)
    return array.reshape(one.shape)


def _other_count(one: _Declared, count: int) -> MalformedRequest:
    return MalformedRequest(f"input {one.name!r}: shape {one.shape} does not hold {count} elements")


def _depth(data: Any) -> int:
    """How deep a list is nested, by its first elements; an uneven one is noticed later."""
    depth = 0
    while isinstance(data, list) and depth <= MAX_RANK:
        depth += 1
        data = data[0] if data else None
    return depth


def _outputs(entries: Any, binary: bool) -> dict[str, bool]:
    if not isinstance(entries, list):
        raise MalformedRequest("'outputs' must be a list")
    if len(entries) > MAX_TENSORS:
        raise MalformedRequest(f"{len(entries)} outputs in one request, {MAX_TENSORS} are allowed")
    wanted: dict[str, bool] = {}
    for entry in entries:
        name = _named(entry, "output")
        parameters = _mapping(entry.get("parameters"), "output {} parameters", name)
        refuse(parameters, TENSOR, f"output {name!r}")
        wanted[name] = _truth(parameters, "binary_data", f"output {name!r}: binary_data", binary)
    return wanted
