"""The Open Inference Protocol's gRPC messages to tensors and back.

Messages and values only: no calls, no status codes. Source: Open Inference Protocol v2 (gRPC), with Triton's
reading of what it leaves open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from optimizers.tensors import (
    DTYPES,
    Array,
    TensorError,
    Tensors,
    TensorSpec,
    element_count,
    from_bytes,
    to_bytes,
)
from router.ingress.grpc_messages import message
from router.ingress.protocol import ProtocolError

#: Where the typed contents of each datatype stand. FP16 and BF16 have no field: they travel raw only.
_FIELDS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
#: What Triton can do and this server does not: better refused than taken for something else.
_NOT_OFFERED = {
    "shared_memory_region": "shared memory is not offered; send the data in the request",
    "classification": "classification is not offered; ask for the output as it is",
}


class InferMessage(NamedTuple):
    """One decoded ModelInferRequest. ``outputs`` is None where all are asked for; ``raw`` as it was asked."""

    model: str
    variant: str | None
    inputs: Tensors
    id: str
    parameters: dict[str, Any]
    outputs: frozenset[str] | None
    raw: bool


def parse(name: str, data: bytes) -> Any:
    """The message ``name`` from its bytes. Raises `ProtocolError`."""
    parsed = message(name)()
    try:
        parsed.ParseFromString(data)
    except DecodeError:
        raise ProtocolError(f"the message is not an {parsed.DESCRIPTOR.full_name}") from None
    return parsed


def decode(asked: Any) -> InferMessage:
    """A request from its parsed message. Raises `ProtocolError` that names the tensor at fault."""
    raws = asked.raw_input_contents
    if raws and len(raws) != len(asked.inputs):
        raise ProtocolError(f"raw_input_contents has {len(raws)} entries for {len(asked.inputs)} inputs")
    inputs: Tensors = {}
    for index, tensor in enumerate(asked.inputs):
        if tensor.name in inputs:
            raise ProtocolError(f"input {tensor.name!r} is given twice")
        _refuse(tensor, "input")
        inputs[tensor.name] = _input(tensor, raws[index] if raws else None)
    for tensor in asked.outputs:
        _refuse(tensor, "output")
    return InferMessage(
        asked.model_name,
        asked.model_version or None,
        inputs,
        asked.id,
        values(asked.parameters),
        frozenset(tensor.name for tensor in asked.outputs) or None,
        bool(raws),
    )


def _refuse(tensor: Any, what: str) -> None:
    for name, reason in _NOT_OFFERED.items():
        if name in tensor.parameters:
            raise ProtocolError(f"{what} {tensor.name!r}: {reason}")


def _input(tensor: Any, raw: bytes | None) -> Array:
    name, datatype, shape = tensor.name, tensor.datatype, list(tensor.shape)
    if datatype not in DTYPES:
        raise ProtocolError(f"input {name!r}: unknown datatype {datatype!r}; known: {', '.join(DTYPES)}")
    try:
        if raw is None:
            return _typed(tensor, datatype, shape)
        if tensor.HasField("contents"):
            raise ProtocolError(f"input {name!r}: give 'contents' or raw_input_contents, not both")
        return from_bytes(raw, datatype, shape, name)
    except TensorError as error:
        raise ProtocolError(f"input {error}") from None


def _typed(tensor: Any, datatype: str, shape: list[int]) -> Array:
    name, field = tensor.name, _FIELDS.get(datatype)
    if field is None:
        raise ProtocolError(f"input {name!r}: {datatype} has no typed contents; use raw_input_contents")
    items, count = getattr(tensor.contents, field), element_count(shape, name)
    if len(items) != count:
        raise ProtocolError(
            f"input {name!r}: shape {shape} takes {count} elements, contents.{field} has {len(items)}"
        )
    try:
        return np.fromiter(items, DTYPES[datatype], count).reshape(shape)
    except OverflowError:
        raise ProtocolError(f"input {name!r}: values are out of the range of {datatype}") from None


def values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as plain values; one in which nothing is chosen is left out."""
    chosen = ((name, entry, entry.WhichOneof("parameter_choice")) for name, entry in parameters.items())
    return {name: getattr(entry, choice) for name, entry, choice in chosen if choice}


def set_values(parameters: Any, plain: Mapping[str, Any]) -> None:
    """The inverse of `values`, into a message's map."""
    for name, value in plain.items():
        if isinstance(value, bool):
            parameters[name].bool_param = value
        elif isinstance(value, int):
            parameters[name].int64_param = value
        elif isinstance(value, float):
            parameters[name].double_param = value
        else:
            parameters[name].string_param = str(value)


def encode(
    outputs: Mapping[str, Array],
    specs: Sequence[TensorSpec],
    asked: InferMessage,
    *,
    variant: str,
    request_id: str,
    parameters: Mapping[str, Any],
) -> bytes:
    """A ModelInferResponse: raw where the request was, or where a datatype cannot travel otherwise."""
    told = message("ModelInferResponse")(model_name=asked.model, model_version=variant, id=request_id)
    set_values(told.parameters, parameters)
    chosen = [spec for spec in specs if asked.outputs is None or spec.name in asked.outputs]
    raw = asked.raw or any(spec.datatype not in _FIELDS for spec in chosen)
    for spec in chosen:
        array = outputs[spec.name]
        tensor = told.outputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
        if raw:
            told.raw_output_contents.append(bytes(to_bytes(array, spec.datatype)))
            continue
        items = array.ravel().tolist()
        if spec.datatype == "BYTES":
            items = [item.encode() if isinstance(item, str) else bytes(item) for item in items]
        getattr(tensor.contents, _FIELDS[spec.datatype]).extend(items)
    encoded: bytes = told.SerializeToString()
    return encoded
