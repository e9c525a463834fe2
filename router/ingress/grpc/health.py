"""gRPC's own health check: which status a request is answered with.

The empty service name and the protocol's service stand for the whole router.
"""

from __future__ import annotations

from enum import IntEnum

from router.ingress.grpc.messages import HEALTH_PACKAGE, SERVICE, message, parse


class HealthStatus(IntEnum):
    """``ServingStatus`` of health.proto."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


def status(data: bytes, ready: bool) -> HealthStatus:
    """The status of the service that a request names. Raises `MalformedRequest`."""
    if parse("HealthCheckRequest", data, HEALTH_PACKAGE).service not in ("", SERVICE):
        return HealthStatus.SERVICE_UNKNOWN
    return HealthStatus.SERVING if ready else HealthStatus.NOT_SERVING


def answer(status: HealthStatus) -> bytes:
    """A ``HealthCheckResponse``."""
    encoded: bytes = message("HealthCheckResponse", HEALTH_PACKAGE)(status=int(status)).SerializeToString()
    return encoded
