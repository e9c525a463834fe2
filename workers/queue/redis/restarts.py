"""Notices that the queue's server is another process than before: it was restarted, or replaced.

Whoever uses the server knows its URL only, so the server itself is asked: each start draws a new run id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from redis.asyncio import Redis
from redis.exceptions import RedisError

_TIMEOUT_S = 5.0


async def watch(client: Redis, on_restart: Callable[[], None], every_s: float = 1.0) -> None:
    """Ask until cancelled. A server that does not answer, or may not be asked, is neither old nor new."""
    known: str | None = None
    while True:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                run_id = (await client.info("server")).get("run_id")
        except (RedisError, OSError):
            run_id = None
        if run_id is not None:
            if known not in (None, run_id):
                on_restart()
            known = run_id
        await asyncio.sleep(every_s)
