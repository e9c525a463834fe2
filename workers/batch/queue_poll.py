"""Reads a queue's counts in a thread of its own, for as long as an owner is alive.

A process has one thread per queue, however many callers there are. Ray Serve creates a scaling policy again
with every deployment and pickles the policy's module by value; this module is imported instead, so that what
must exist once per process does.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from weakref import WeakSet

from workers.batch.failure_log import FailureLog
from workers.queue.contract import DeadlineQueue, QueueError, QueueStats
from workers.queue.settings import settings_from

logger = logging.getLogger("ray.serve")

_LONGEST_PAUSE_S = 5.0
_lock = threading.Lock()
_polls: dict[tuple[str, str, str], QueuePoll] = {}


def poll_for(
    owner: object, url: str, model: str, namespace: str, settings: Mapping[str, Any], every_s: float
) -> QueuePoll:
    """The poll of a queue, which runs while ``owner`` or another owner is alive. The last caller's settings
    and pace apply."""
    make = partial(open_queue, url, model, namespace, settings)
    with _lock:
        key = (url, model, namespace)
        poll = _polls.get(key)
        if poll is None:
            poll = _polls[key] = QueuePoll(key)
        poll.owners.add(owner)
        poll.make, poll.every_s = make, every_s
        poll.keep_running()
    return poll


def open_queue(url: str, model: str, namespace: str, settings: Mapping[str, Any]) -> DeadlineQueue:
    from workers.queue.redis.queue import RedisQueue

    return RedisQueue.open(url, model, settings_from(settings), namespace=namespace, patience_s=2.0)


class QueuePoll:
    """Made by :func:`poll_for`. It reaps too: the workers of the queue may be scaled to zero."""

    make: Callable[[], DeadlineQueue]
    every_s: float

    def __init__(self, key: tuple[str, str, str]) -> None:
        self.owners: WeakSet[object] = WeakSet()
        self._key = key
        self._thread: threading.Thread | None = None
        self._latest: QueueStats | None = None
        self._latest_at = -math.inf
        self._read_failures = FailureLog(f"cannot read the queue of model {key[1]!r}")
        self._reap_failures = FailureLog(f"cannot reap the queue of model {key[1]!r}")
        self._orphans = OrphanLog(key[1])

    def latest(self, max_age_s: float) -> QueueStats | None:
        """The last reading; None if it is older than that."""
        with _lock:
            self.keep_running()
        return self._latest if time.monotonic() - self._latest_at <= max_age_s else None

    def keep_running(self) -> None:
        """Start the thread if there is none (any more). The lock is held."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name=f"{self._key[1]} queue poll", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        asyncio.run(self._read_until_unwanted())

    def _is_wanted(self) -> bool:
        with _lock:
            if self.owners:
                return True
            if _polls.get(self._key) is self:
                del _polls[self._key]
            return False

    async def _read_until_unwanted(self) -> None:
        while self._is_wanted():
            make = self.make
            try:
                queue = make()
                try:
                    while self.make is make and self._is_wanted():
                        await self._read_once(queue)
                        self._read_failures.clear()
                        await asyncio.sleep(self.every_s)
                finally:
                    await queue.close()
            except Exception as error:  # any error: without this thread nothing is scaled up from zero
                self._read_failures.add(error)
                await asyncio.sleep(self._read_failures.pause_s(2 * self.every_s, _LONGEST_PAUSE_S))

    async def _read_once(self, queue: DeadlineQueue) -> None:
        try:
            await queue.reap()
            self._reap_failures.clear()
        except QueueError as error:
            self._reap_failures.add(error)
        stats = await queue.stats()
        self._latest, self._latest_at = stats, time.monotonic()
        self._orphans.note(stats)


class OrphanLog:
    """Logs when jobs have lost their record or payload in the queue's server."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._count: int | None = None

    def note(self, stats: QueueStats) -> None:
        count = stats.totals["orphaned"]
        if self._count is not None and count > self._count:
            logger.error(
                "model %s: %d queued jobs lost their record or payload in the queue's server and cannot run; "
                "they were evicted, or deleted by hand (its maxmemory-policy must be noeviction)",
                self._model,
                count - self._count,
            )
        self._count = count
