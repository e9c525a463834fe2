"""Notifications from the queue's server to the waiting callers of this process, over one subscription.

A notification can be lost (a connection breaks); it only ever means "look again". So all
callers look again after each reconnect, and by themselves from time to time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random

from redis.asyncio import Redis
from redis.exceptions import RedisError

from workers.queue.redis.keys import Keys
from workers.queue.waiters import Waiters


class Notifications:
    """Wakes ``waiters``. Started by the first wait. ``close`` ends the subscription and wakes all waiters."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._task: asyncio.Task[None] | None = None
        self._subscribed = asyncio.Event()
        self.waiters = Waiters()

    async def ready(self) -> None:
        """Return once subscribed; what is announced from then on wakes waiters.

        While the server is away this waits with it: callers bound it by their own timeout.
        """
        if self._task is None:
            self._task = asyncio.create_task(self._listen(), name=f"notifications {self._keys.base}")
        await self._subscribed.wait()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self._subscribed.set()
        self.waiters.wake_all()
        await self._client.aclose()
        await self._client.connection_pool.disconnect()

    async def _listen(self) -> None:
        pause_s = 0.02
        while True:
            pubsub = self._client.pubsub()
            try:
                await pubsub.subscribe(self._keys.ended, self._keys.work)
                async for message in pubsub.listen():
                    self._dispatch(message)
                    pause_s = 0.02
            except (RedisError, OSError):
                pass
            finally:
                with contextlib.suppress(RedisError, OSError):
                    await pubsub.aclose()  # type: ignore[no-untyped-call]
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(0.5, pause_s * 2)

    def _dispatch(self, message: dict[str, object]) -> None:
        if message["type"] == "subscribe":
            # Also after redis-py reconnected by itself: what was announced meanwhile is lost.
            self._subscribed.set()
            self.waiters.wake_all()
        elif message["type"] == "message":
            data = message["data"]
            text = data.decode() if isinstance(data, bytes) else str(data)
            if not text:
                self.waiters.wake_for_work()
            for id in text.split():
                self.waiters.wake_for_end(id)
