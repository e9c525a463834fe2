"""The router in memory behind a real port: for clients that need a server and no Ray cluster."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import uvicorn

from router.policy.tenants import Tenant
from tests.support.served import Served, serving


class _Server(uvicorn.Server):
    """Says when it listens, and takes no signals: they are the test run's."""

    def __init__(self, config: uvicorn.Config, listening: threading.Event) -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self._listening.set()

    @property
    def port(self) -> int:
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port


@contextmanager
def live(prefix: str = "", tenants: Mapping[str, Tenant] | None = None) -> Iterator[str]:
    """The address of a router with a batch worker, in a thread of its own; ``tenants`` go into its policy."""
    listening, servers = threading.Event(), list[_Server]()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(listening, servers, prefix, tenants or {})))
    thread.start()
    try:
        assert listening.wait(20), "the server does not start"
        yield f"http://127.0.0.1:{servers[0].port}{prefix}"
    finally:
        for server in servers:
            server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server does not end"


async def _serve(
    listening: threading.Event, servers: list[_Server], prefix: str, tenants: Mapping[str, Tenant]
) -> None:
    async with serving() as served:
        served.service.apply_policy(served.service.policy.model_copy(update={"tenants": dict(tenants)}))
        app: Any = _mounted(served, prefix)
        config = uvicorn.Config(
            app, host="127.0.0.1", port=0, lifespan="off", log_level="critical", root_path=prefix
        )
        servers.append(_Server(config, listening))
        beside = [asyncio.create_task(_work(served)), asyncio.create_task(served.service.queued.watch())]
        try:
            await servers[0].serve()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)


def _mounted(served: Served, prefix: str) -> Any:
    """The application as a proxy that takes the prefix off mounts it: uvicorn puts it back."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if prefix and scope["path"].startswith(prefix * 2):
            scope = {**scope, "path": scope["path"].removeprefix(prefix)}
        await served.ingress(scope, receive, send)

    return app


async def _work(served: Served) -> None:
    """Be the batch worker until cancelled."""
    while True:
        await served.work()
        await asyncio.sleep(0.005)
