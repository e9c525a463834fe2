"""The Open Inference Protocol's gRPC messages to tensors and back.

Messages and values only: no calls, no status codes. Source: Open Inference Protocol v2 (gRPC), with Triton's
reading of what it leaves open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optimizers.tensors import (
    DTYPES,
    MAX_DIMENSION,
    Array,
    TensorError,
    Tensors,
    TensorSpec,
    check_declared,
    element_count,
)
from router.ingress.codec import tensor_steps
from router.ingress.codec.json_data import whole_numbers
from router.ingress.codec.not_offered import REQUEST, TENSOR, refuse
from router.ingress.codec.protocol import DecodedBody, MalformedRequest
from router.ingress.codec.steps import STEP_ITEMS, Steps
from router.ingress.grpc.messages import message
from router.service.errors import TooManyRows

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
#: What numpy takes a field's items as: what the field holds, whatever the tensor's datatype.
_ITEMS = {
    "bool_contents": "?",
    "int_contents": "<i8",
    "int64_contents": "<i8",
    "uint_contents": "<u8",
    "uint64_contents": "<u8",
    "fp32_contents": "<f4",
    "fp64_contents": "<f8",
    "bytes_contents": "O",
}


def decode_steps(
    asked: Any, specs: Sequence[TensorSpec] | None = None, max_rows: int = MAX_DIMENSION
) -> Steps[DecodedBody]:
    """A request from its parsed message. Raises `MalformedRequest` that names the tensor at fault.

    ``specs`` are the model's inputs: what the request declares is compared with them, and with ``max_rows``,
    before any data are read. Raises `TooManyRows` too, and `TensorError` for inputs that are not the model's.
    """
    raws = asked.raw_input_contents
    if raws and len(raws) != len(asked.inputs):
        raise MalformedRequest(f"raw_input_contents has {len(raws)} entries for {len(asked.inputs)} inputs")
    parameters = values(asked.parameters)
    refuse(parameters, REQUEST, "the request")
    declared: dict[str, tuple[str, list[int]]] = {}
    for tensor in asked.inputs:
        if tensor.name in declared:
            raise MalformedRequest(f"input {tensor.name!r} is given twice")
        refuse(_given(tensor.parameters), TENSOR, f"input {tensor.name!r}")
        declared[tensor.name] = tensor.datatype, _shape(tensor, max_rows)
    for tensor in asked.outputs:
        refuse(_given(tensor.parameters), TENSOR, f"output {tensor.name!r}")
    if specs is not None:
        check_declared(declared, specs)
    inputs: Tensors = {}
    for index, tensor in enumerate(asked.inputs):
        try:
            inputs[tensor.name] = yield from _input(tensor, raws[index] if raws else None)
        except TensorError as error:
            raise MalformedRequest(f"input {error}") from None
    outputs = dict.fromkeys((tensor.name for tensor in asked.outputs), bool(raws)) or None
    return DecodedBody(inputs, asked.id or None, parameters, outputs, bool(raws))


def _shape(tensor: Any, max_rows: int) -> list[int]:
    """The shape of an input whose datatype is known and whose rows are not too many."""
    if tensor.datatype not in DTYPES:
        known = ", ".join(DTYPES)
        raise MalformedRequest(f"input {tensor.name!r}: unknown datatype {tensor.datatype!r}; known: {known}")
    shape = list(tensor.shape)
    if shape and max_rows < shape[0] <= MAX_DIMENSION:
        raise TooManyRows(f"{shape[0]} rows in one request; the policy's limits.rows is {max_rows}")
    return shape


def _input(tensor: Any, raw: bytes | None) -> Steps[Array]:
    name, datatype, shape = tensor.name, tensor.datatype, list(tensor.shape)
    if raw is not None:
        if tensor.HasField("contents"):
            raise MalformedRequest(f"input {name!r}: give 'contents' or raw_input_contents, not both")
        return (yield from tensor_steps.read(raw, datatype, shape, name))
    field = _FIELDS.get(datatype)
    if field is None:
        raise MalformedRequest(f"input {name!r}: {datatype} has no typed contents; use raw_input_contents")
    items, count = getattr(tensor.contents, field), element_count(shape, name)
    if len(items) != count:
        raise MalformedRequest(
            f"input {name!r}: shape {shape} takes {count} elements, contents.{field} has {len(items)}"
        )
    array, whole = np.empty(count, DTYPES[datatype]), DTYPES[datatype].kind in "iu"
    for start in range(0, count, STEP_ITEMS):
        if start:
            yield
        part = np.array(items[start : start + STEP_ITEMS], dtype=_ITEMS[field])
        array[start : start + STEP_ITEMS] = whole_numbers(part, datatype, name) if whole else part
    return array.reshape(shape)


def values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as plain values; one in which nothing is chosen is left out."""
    chosen = ((name, entry, entry.WhichOneof("parameter_choice")) for name, entry in parameters.items())
    return {name: getattr(entry, choice) for name, entry, choice in chosen if choice}


def _given(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as plain values; one in which nothing is chosen is given all the same."""
    return dict.fromkeys(parameters, True) | values(parameters)


def set_values(parameters: Any, plain: Mapping[str, Any]) -> None:
    """The inverse of `values`, into a message's map."""
    for name, value in plain.items():
        if isinstance(value, bool):
            parameters[name].bool_param = value
        elif isinstance(value, int) and value >= 1 << 63:
            parameters[name].uint64_param = value
        elif isinstance(value, int):
            parameters[name].int64_param = value
        elif isinstance(value, float):
            parameters[name].double_param = value
        else:
            parameters[name].string_param = str(value)


def encode_steps(
    outputs: Mapping[str, Array],
    specs: Sequence[TensorSpec],
    request: DecodedBody,
    *,
    model: str,
    variant: str,
    request_id: str,
    parameters: Mapping[str, Any],
) -> Steps[bytes]:
    """A ModelInferResponse: raw where the request was, or where a datatype cannot travel otherwise."""
    response = message("ModelInferResponse")(model_name=model, model_version=variant, id=request_id)
    set_values(response.parameters, parameters)
    chosen = [spec for spec in specs if request.outputs is None or spec.name in request.outputs]
    raw = request.binary or any(spec.datatype not in _FIELDS for spec in chosen)
    for spec in chosen:
        array = outputs[spec.name]
        tensor = response.outputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
        if raw:
            response.raw_output_contents.append(bytes((yield from tensor_steps.write(array, spec.datatype))))
            continue
        field, flat = getattr(tensor.contents, _FIELDS[spec.datatype]), array.ravel()
        for start in range(0, flat.size, STEP_ITEMS):
            if start:
                yield
            items = flat[start : start + STEP_ITEMS].tolist()
            if spec.datatype == "BYTES":
                items = [item.encode() if isinstance(item, str) else bytes(item) for item in items]
            field.extend(items)
    encoded: bytes = response.SerializeToString()
    return encoded
