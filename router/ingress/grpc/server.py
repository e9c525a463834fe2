"""What Serve's gRPC servers are told of the protocol: its methods, and how tools can look them up.

Every proxy and router replica imports this module, by the name in `SERVICER`.
"""

from __future__ import annotations

from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection

from router.ingress.grpc.health import HEALTH_SERVICE
from router.ingress.grpc.messages import METHODS, SERVICE, pool
from router.ingress.grpc.raw_message import RawMessage

SERVICER = "router.ingress.grpc.server.add_to_server"


def add_to_server(servicer: Any, server: Any) -> None:
    """Give the protocol's methods to a server of Serve's, which puts its own handlers in their place.

    Server reflection (for grpcurl and the like) is added here as Serve's own looks in the shared pool only.
    """
    handlers = {
        method: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, method), request_deserializer=RawMessage
        )
        for method in METHODS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    health = {
        "Check": grpc.unary_unary_rpc_method_handler(servicer.Check, request_deserializer=RawMessage),
        "Watch": grpc.unary_stream_rpc_method_handler(servicer.Watch, request_deserializer=RawMessage),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(HEALTH_SERVICE, health),))
    server.add_passthrough_service(reflection.SERVICE_NAME)
    reflection.enable_server_reflection((SERVICE,), server, pool=pool())
