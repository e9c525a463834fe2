"""gRPC's own health check, which Kubernetes and load balancers call: ``grpc.health.v1.Health``.

Messages and values only. The empty service name and the protocol's service stand for the whole router. As in
`router.ingress.grpc.messages`, classes are made when asked for, in a pool of their own.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from router.ingress.codec.protocol import MalformedRequest
from router.ingress.grpc.messages import SERVICE

_PACKAGE = "grpc.health.v1"
_TYPES = {"in": "Request", "out": "Response"}
HEALTH_SERVICE = f"{_PACKAGE}.Health"


class Status(IntEnum):
    """ServingStatus of the protocol."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    #: In a stream only; a single check of an unknown service is NOT_FOUND.
    SERVICE_UNKNOWN = 3


def file_descriptor() -> FileDescriptorProto:
    """The service and its messages, as a compiler would describe them."""
    file = FileDescriptorProto(name="grpc/health/v1/health.proto", package=_PACKAGE, syntax="proto3")
    optional = FieldDescriptorProto.LABEL_OPTIONAL
    asked = file.message_type.add(name="HealthCheckRequest")
    asked.field.add(name="service", number=1, type=FieldDescriptorProto.TYPE_STRING, label=optional)
    told = file.message_type.add(name="HealthCheckResponse")
    statuses = told.enum_type.add(name="ServingStatus")
    for status in Status:
        statuses.value.add(name=status.name, number=status.value)
    kind = f".{_PACKAGE}.HealthCheckResponse.ServingStatus"
    told.field.add(
        name="status", number=1, type=FieldDescriptorProto.TYPE_ENUM, type_name=kind, label=optional
    )
    service = file.service.add(name="Health")
    types = {f"{way}put_type": f".{_PACKAGE}.HealthCheck{kind}" for way, kind in _TYPES.items()}
    service.method.add(name="Check", **types)
    service.method.add(name="Watch", server_streaming=True, **types)
    return file


@cache
def message(name: str) -> Any:
    """The class of ``HealthCheckRequest`` or ``HealthCheckResponse``."""
    pool = DescriptorPool()
    pool.Add(file_descriptor())
    return GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


def status(data: bytes, ready: bool) -> Status:
    """The status of the service that a request names. Raises `MalformedRequest` for what is no request."""
    asked = message("HealthCheckRequest")()
    try:
        asked.ParseFromString(data)
    except DecodeError:
        raise MalformedRequest("the message is not a grpc.health.v1.HealthCheckRequest") from None
    if asked.service not in ("", SERVICE):
        return Status.SERVICE_UNKNOWN
    return Status.SERVING if ready else Status.NOT_SERVING


def answer(status: Status) -> bytes:
    encoded: bytes = message("HealthCheckResponse")(status=int(status)).SerializeToString()
    return encoded
