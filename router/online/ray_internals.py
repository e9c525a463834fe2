"""Every private name of Ray that this project uses, each with what it is for and what would replace it.

``tests/contract/test_ray_internals.py`` holds each against the installed Ray: run it first after an upgrade.
"""

from __future__ import annotations

from typing import Any


def by_reference(handle: Any) -> Any:
    """``DeploymentHandle.options(_by_reference=True)``: calls that travel as Ray's own messages.

    Serve otherwise serializes calls between replicas for gRPC, and an actor's handle cannot travel so.
    """
    return handle.options(_by_reference=True)


class ServeActor:
    """A replica's actor, called by the method that Serve's own handles end in.

    ``ActorReplicaWrapper.send_request_python`` takes a ``PendingRequest`` with ``RequestMetadata``. The
    public way is the handle's ``remote``: it chooses a replica by itself, and each call costs 1.5 ms more.
    """

    def __init__(self, actor: Any) -> None:
        from ray.serve._private.common import RequestMetadata
        from ray.serve._private.request_router.common import PendingRequest
        from ray.serve._private.request_router.replica_wrapper import ActorReplicaWrapper

        wrapper: Any = ActorReplicaWrapper
        self._actor, self._pending = wrapper(actor), PendingRequest
        self._metadata = RequestMetadata("batch", "batch", call_method="run")

    async def run(self, variant: str, message: bytes) -> bytes:
        call = self._pending([variant, message], {}, self._metadata)
        reply: bytes = await self._actor.send_request_python(call, with_rejection=False).get_async()
        return reply


def serve_options() -> tuple[Any, Any] | None:
    """The ``HTTPOptions`` and ``gRPCOptions`` of the Serve that runs in the joined Ray; None without one.

    Serve's status has no ports: ``_get_global_client`` gives its client, whose ``_controller`` knows them.
    """
    import ray
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return None
    return client.http_config, ray.get(client._controller.get_grpc_config.remote())
