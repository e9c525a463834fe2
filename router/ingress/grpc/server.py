"""The protocol's methods for Serve's gRPC servers, and server reflection for tools.

Every proxy and router replica imports this module, by the name in `SERVICER`.
"""

from __future__ import annotations

from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection

from router.ingress.grpc.messages import HEALTH_SERVICE, SERVICE, pool
from router.ingress.grpc.raw_message import RawMessage

SERVICER = "router.ingress.grpc.server.add_to_server"


def add_to_server(servicer: Any, server: Any) -> None:
    """Give the protocol's methods to a server of Serve's, which puts its own handlers in their place.

    Server reflection (for grpcurl and the like) is added here as Serve's own looks in the shared pool only.
    """
    for service in (SERVICE, HEALTH_SERVICE):
        handlers = {
            method.name: (
                grpc.unary_stream_rpc_method_handler
                if method.server_streaming
                else grpc.unary_unary_rpc_method_handler
            )(getattr(servicer, method.name), request_deserializer=RawMessage)
            for method in pool().FindServiceByName(service).methods
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_passthrough_service(reflection.SERVICE_NAME)
    reflection.enable_server_reflection((SERVICE,), server, pool=pool())
