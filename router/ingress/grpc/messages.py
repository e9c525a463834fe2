"""The messages of the Open Inference Protocol over gRPC, made when asked for: no generated code, no compiler.

They live in a descriptor pool of their own. One process may then hold any client's generated classes for the
same protocol beside them; in protobuf's shared pool the second copy would clash with the first.

Source: Open Inference Protocol v2 (gRPC), package ``inference``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")

_PARAMETERS = "map InferParameter"
#: Message -> field -> type, numbered from 1 in this order unless ``=`` says otherwise. ``*`` is repeated,
#: ``map`` is from string, ``?`` marks the members of a message's one choice.
_MESSAGES: Mapping[str, Mapping[str, str]] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": "bool"},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": "bool"},
    "ModelReadyRequest": {"name": "string", "version": "string"},
    "ModelReadyResponse": {"ready": "bool"},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {"name": "string", "version": "string", "extensions": "*string"},
    "ModelMetadataRequest": {"name": "string", "version": "string"},
    "ModelMetadataResponse": {
        "name": "string",
        "versions": "*string",
        "platform": "string",
        "inputs": "*ModelMetadataResponse.TensorMetadata",
        "outputs": "*ModelMetadataResponse.TensorMetadata",
    },
    "ModelMetadataResponse.TensorMetadata": {"name": "string", "datatype": "string", "shape": "*int64"},
    "InferParameter": {
        "bool_param": "?bool",
        "int64_param": "?int64",
        "string_param": "?string",
        "double_param": "?double",
        "uint64_param": "?uint64",
    },
    "InferTensorContents": {
        "bool_contents": "*bool",
        "int_contents": "*int32",
        "int64_contents": "*int64",
        "uint_contents": "*uint32",
        "uint64_contents": "*uint64",
        "fp32_contents": "*float",
        "fp64_contents": "*double",
        "bytes_contents": "*bytes",
    },
    "ModelInferRequest": {
        "model_name": "string",
        "model_version": "string",
        "id": "string",
        "parameters": _PARAMETERS,
        "inputs": "*ModelInferRequest.InferInputTensor",
        "outputs": "*ModelInferRequest.InferRequestedOutputTensor",
        "raw_input_contents": "*bytes",
    },
    "ModelInferRequest.InferInputTensor": {
        "name": "string",
        "datatype": "string",
        "shape": "*int64",
        "parameters": _PARAMETERS,
        "contents": "InferTensorContents",
    },
    "ModelInferRequest.InferRequestedOutputTensor": {"name": "string", "parameters": _PARAMETERS},
    "ModelInferResponse": {
        "model_name": "string",
        "model_version": "string",
        "id": "string",
        "parameters": _PARAMETERS,
        "outputs": "*ModelInferResponse.InferOutputTensor",
        "raw_output_contents": "*bytes",
    },
    "ModelInferResponse.InferOutputTensor": {
        "name": "string",
        "datatype": "string",
        "shape": "*int64",
        "parameters": _PARAMETERS,
        "contents": "InferTensorContents",
    },
}
_CHOICE = "parameter_choice"
_SCALARS = {
    name: getattr(FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")
}


def file_descriptor() -> FileDescriptorProto:
    """The protocol's messages and its service, as a compiler would describe them."""
    file = FileDescriptorProto(name="open_inference_protocol.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, DescriptorProto] = {}
    for full_name, fields in _MESSAGES.items():
        outer, _, name = full_name.rpartition(".")
        message = (made[outer].nested_type if outer else file.message_type).add(name=name)
        made[full_name] = message
        for number, (field, kind) in enumerate(fields.items(), 1):
            _add_field(message, full_name, field, number, kind)
    service = file.service.add(name=SERVICE.rpartition(".")[2])
    for method in METHODS:
        asked, told = f".{PACKAGE}.{method}Request", f".{PACKAGE}.{method}Response"
        service.method.add(name=method, input_type=asked, output_type=told)
    return file


def _add_field(message: DescriptorProto, full_name: str, name: str, number: int, kind: str) -> None:
    field = message.field.add(name=name, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
    if kind.startswith("?"):
        if not message.oneof_decl:
            message.oneof_decl.add(name=_CHOICE)
        field.oneof_index, kind = 0, kind[1:]
    if kind.startswith("map "):
        # A map is a repeated message of key and value, by protobuf's own rule for its name.
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        _add_field(entry, "", "key", 1, "string")
        _add_field(entry, "", "value", 2, kind.removeprefix("map "))
        kind = f"*{full_name}.{entry.name}"
    if kind.startswith("*"):
        field.label, kind = FieldDescriptorProto.LABEL_REPEATED, kind[1:]
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{PACKAGE}.{kind}"


@cache
def pool() -> DescriptorPool:
    """The pool that holds the protocol, and nothing else."""
    made = DescriptorPool()
    made.Add(file_descriptor())
    return made


@cache
def message(name: str) -> Any:
    """The class of a message, as ``ModelInferRequest`` or ``ModelInferRequest.InferInputTensor``."""
    return GetMessageClass(pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))
