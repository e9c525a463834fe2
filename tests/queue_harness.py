"""Both queues behind one face, on a clock that tests step; and a real server to run the one on."""

from __future__ import annotations

import random
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from workers.queue.contract import DeadlineQueue
from workers.queue.job import NewJob
from workers.queue.memory.queue import MemoryQueue
from workers.queue.redis.client import connect
from workers.queue.redis.queue import RedisQueue
from workers.queue.redis.scripts import load_scripts
from workers.queue.settings import QueueSettings

START_MS = 1_800_000_000_000

#: In place of the server's time: what the test last set.
CLOCK = "local function clock() return tonumber(redis.call('GET', KEYS[1] .. ':clock')) end"
SCRIPTS = load_scripts(CLOCK)


@dataclass
class Harness:
    """A queue and the hand on its clock."""

    queue: DeadlineQueue
    set_clock: Callable[[int], Awaitable[None]]
    now_ms: int = START_MS

    async def advance(self, ms: int) -> None:
        self.now_ms += ms
        await self.set_clock(self.now_ms)

    async def close(self) -> None:
        await self.queue.close()


async def memory(settings: QueueSettings | None = None, seed: int = 0) -> Harness:
    now = [START_MS]

    async def set_clock(ms: int) -> None:
        now[0] = ms

    queue = MemoryQueue("m", settings, now_ms=lambda: now[0], rng=random.Random(seed))
    return Harness(queue, set_clock)


async def on_redis(url: str, settings: QueueSettings | None = None, seed: int = 0) -> Harness:
    """A queue of its own under a fresh name."""
    model = uuid.uuid4().hex
    client = connect(url)

    async def set_clock(ms: int) -> None:
        await client.set(f"hr:{{{model}}}:clock", ms)

    await set_clock(START_MS)
    queue = RedisQueue(client, model, settings, scripts=SCRIPTS, rng=random.Random(seed))
    queue._owns_client = True
    return Harness(queue, set_clock)


def job(id: str, budget_ms: int = 60_000, **more: object) -> NewJob:
    fields: dict[str, object] = {"payload": f"payload of {id}".encode(), "rows": 1, **more}
    return NewJob(id=id, budget_ms=budget_ms, **fields)  # type: ignore[arg-type]
