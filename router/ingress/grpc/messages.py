"""The gRPC messages of ``open_inference.proto`` and ``health.proto``, from their compiled description.

``messages.binpb`` is what the compiler makes of the two files. After a change to either, compile them again
(grpcio-tools is among the developer's tools); a test fails until you do::

    cd router/ingress/grpc
    python -m grpc_tools.protoc -I . --descriptor_set_out messages.binpb open_inference.proto health.proto

The messages live in a descriptor pool of their own and not in generated modules, which register themselves in
protobuf's shared pool: the classes of any other client of the protocol in the same process, such as
tritonclient's, would clash with them there.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from router.ingress.codec.protocol import MalformedRequest

PACKAGE, HEALTH_PACKAGE = "inference", "grpc.health.v1"
SERVICE, HEALTH_SERVICE = f"{PACKAGE}.GRPCInferenceService", f"{HEALTH_PACKAGE}.Health"
DESCRIPTORS = Path(__file__).with_name("messages.binpb")


@cache
def pool() -> DescriptorPool:
    """The pool that holds both services and their messages, and nothing else."""
    descriptors = DescriptorPool()
    for file in FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
        descriptors.Add(file)
    return descriptors


@cache
def message(name: str, package: str = PACKAGE) -> Any:
    """The class of a message, as ``ModelInferRequest`` or ``ModelInferRequest.InferInputTensor``."""
    return GetMessageClass(pool().FindMessageTypeByName(f"{package}.{name}"))


def parse(name: str, data: bytes, package: str = PACKAGE) -> Any:
    """The message ``name`` from its bytes. Raises `MalformedRequest`."""
    parsed = message(name, package)()
    try:
        parsed.ParseFromString(data)
    except DecodeError:
        raise MalformedRequest(f"the message is no valid {parsed.DESCRIPTOR.full_name}") from None
    return parsed
