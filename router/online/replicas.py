"""The way of a batch to a replica: straight to its actor, through Serve's handle where that cannot be.

A handle chooses, counts, asks whether the call is welcome and follows its cancellation for every call:
2.3 ms of the router's processor time, against 0.8 for the call itself (Ray 2.60). The router knows what
it has in flight, so it needs none of it. Serve stays in charge of the replicas: it starts, checks and
replaces them, and its handle tells which there are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from router.online.ray_internals import ServeActor, by_reference

_REFRESH_S, _ANSWER_WITHIN_S = 1.0, 5.0
_log = logging.getLogger("ray.serve")


class Actor(Protocol):
    """One replica, called without a handle in between."""

    async def run(self, variant: str, message: bytes) -> bytes: ...


class ReplicaSource(Protocol):
    """Where replicas come from: `ServeSource`, `OwnSource`, or a test's."""

    async def actors(self) -> Mapping[str, Actor]:
        """Those that live now, by their ids; raises whatever keeps it from knowing."""
        ...

    async def run(self, variant: str, message: bytes) -> bytes:
        """Run on any of them, waiting for one if there is none."""
        ...


class Replicas:
    """One model's replicas. `send` goes to the one that is named.

    ``on_change`` is told which there are whenever that changes.
    """

    def __init__(self, source: ReplicaSource) -> None:
        self._source = source
        self.on_change: Callable[[Collection[str]], None] = lambda names: None
        self._actors: dict[str, Actor] = {}
        self._wanted = asyncio.Event()

    @property
    def known(self) -> tuple[str, ...]:
        """The ids of the replicas that are called directly."""
        return tuple(self._actors)

    async def send(self, variant: str, message: bytes, name: str = "") -> bytes:
        """The answer of the replica ``name``; of any where that is not there, or not named.

        Raises what the replica or its end raises. A replica that fails, or whose answer is waited for no
        longer, is left alone until the source names it again; any other is then found by the source.
        """
        actor = self._actors.get(name)
        if actor is None:
            if not self._actors:
                self._wanted.set()
            return await self._source.run(variant, message)
        try:
            return await actor.run(variant, message)
        except BaseException:
            if self._actors.get(name) is actor:
                del self._actors[name]
                self.on_change(self.known)
            self._wanted.set()
            raise

    async def refresh(self) -> None:
        """Ask once which replicas there are."""
        actors = await self._source.actors()
        # The known objects stay, and with them their connections.
        before = self._actors.keys()
        self._actors = {name: self._actors.get(name, actor) for name, actor in actors.items()}
        if self._actors.keys() != before:
            self.on_change(self.known)

    async def watch(self) -> None:
        """Keep the list fresh, every second and after each failure, until cancelled."""
        while True:
            self._wanted.clear()
            try:
                await self.refresh()
            except Exception as error:  # a replica on its way in or out; the handle knows what to do
                _log.debug("online replicas cannot be listed: %s", error)
            try:
                async with asyncio.timeout(_REFRESH_S):
                    await self._wanted.wait()
                await asyncio.sleep(_REFRESH_S / 10.0)  # an end makes many calls fail: one question will do
            except TimeoutError:
                pass


class ServeSource:
    """The replicas of a deployment that has `workers.online.OnlineReplica`'s methods."""

    def __init__(self, handle: Any) -> None:
        self._run, self._all = handle.run, by_reference(handle)

    async def run(self, variant: str, message: bytes) -> bytes:
        reply: bytes = await self._run.remote(variant, message)
        return reply

    async def actors(self) -> Mapping[str, Actor]:
        answers = await self._all.broadcast("identify").results_async(
            timeout_s=_ANSWER_WITHIN_S, return_exceptions=True
        )
        return {a[0]: ServeActor(a[1]) for a in answers if not isinstance(a, BaseException)}


class OwnSource:
    """A model that this process runs itself: one replica, always there."""

    def __init__(self, own: Actor) -> None:
        self._own = own

    async def run(self, variant: str, message: bytes) -> bytes:
        return await self._own.run(variant, message)

    async def actors(self) -> Mapping[str, Actor]:
        return {"own": self._own}
