"""Connections to the queue's server, and calls that outlast its restarts within the caller's time.

Retrying is done in one place, :class:`Caller`, not inside the client as well: a restart, a failover,
``LOADING``, ``READONLY`` and ``OOM`` all look like "not now", and every script may run twice.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from optimizers.files.text import TextError, read_text
from workers.queue.contract import QueueIncompatible, QueueUnavailable
from workers.queue.redis.scripts import Script

T = TypeVar("T")

#: Refusals that pass: the server restarts, loads its data, fails over, or is full for the moment.
PASSING = (
    ConnectionError,
    TimeoutError,
    BusyLoadingError,
    ReadOnlyError,
    OutOfMemoryError,
    ClusterDownError,
    MasterDownError,
    TryAgainError,
    OSError,
)
_PASSING_PREFIXES = ("MISCONF", "NOREPLICAS", "LOADING", "READONLY", "OOM", "MASTERDOWN", "BUSY", "UNBLOCKED")
#: Answers of a server that is not, or no longer, the one to ask: a new connection may lead to another.
_ELSEWHERE = (BusyLoadingError, ReadOnlyError, MasterDownError)
_ELSEWHERE_PREFIXES = ("NOREPLICAS", "LOADING", "READONLY", "MASTERDOWN", "UNBLOCKED")
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5


def resolve_url(url: str) -> str:
    """``file:///path`` stands for the URL that the file holds, and ``env:NAME`` for that of an environment
    variable, so that a password need not be passed through places that log their arguments. Raises
    :class:`QueueUnavailable` if it cannot be read."""
    if url.startswith("env:"):
        name = url.removeprefix("env:")
        if name not in os.environ:
            raise QueueUnavailable(
                f"the environment variable {name!r} that should hold the queue's URL is not set"
            )
        return os.environ[name].strip()
    if not url.startswith("file:"):
        return url
    path = Path(unquote(urlsplit(url).path))
    try:
        return read_text(path).strip()
    except (OSError, TextError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise QueueUnavailable(
            f"the file {path} that should hold the queue's URL cannot be read: {why}"
        ) from error


def connect(url: str, *, max_connections: int = 32, timeout_s: float = 5.0) -> Redis:
    """A client for ``redis://``, ``rediss://``, ``unix://``, ``file:`` or ``env:`` (see `resolve_url`).

    It connects when first used. Raises :class:`QueueUnavailable` for what is no URL. ``max_connections`` at
    once wait for a connection instead of failing.

    Answers are waited for without end: given a time, redis-py sends through `asyncio.wait_for`, which on
    Python 3.11 swallows a cancellation (a third of them, measured), and a loop that was cancelled goes on.
    :class:`Caller` bounds its calls by `asyncio.timeout`, and so should others.
    """
    resolved = resolve_url(url)
    try:
        pool = BlockingConnectionPool.from_url(
            resolved,
            max_connections=max_connections,
            timeout=timeout_s,
            socket_timeout=None,
            socket_connect_timeout=timeout_s,
            socket_keepalive=True,
            health_check_interval=15,
            retry=Retry(NoBackoff(), 0),
            retry_on_error=[],
        )
    except ValueError:
        # What is wrong may quote the password.
        raise QueueUnavailable(
            "the queue's URL cannot be read; write redis://USER:PASSWORD@HOST:PORT/0, with characters like "
            "/ # and @ of a password as %2F %23 and %40"
        ) from None
    return Redis.from_pool(pool)


def for_blocking_reads(client: Redis) -> Redis:
    """A client of the same server whose reads may block for as long as they like."""
    pool = client.connection_pool
    settings = dict(pool.connection_kwargs, socket_timeout=None, retry=Retry(NoBackoff(), 0))
    return Redis.from_pool(ConnectionPool(pool.connection_class, max_connections=2, **settings))


def passes(error: BaseException) -> bool:
    """Whether a call that failed like this is worth repeating."""
    if isinstance(error, (AuthenticationError, AuthorizationError, NoPermissionError)):
        return False
    if isinstance(error, PASSING):
        return True
    return isinstance(error, ResponseError) and str(error).startswith(_PASSING_PREFIXES)


class Caller:
    """Runs scripts on one queue's keys, and repeats them while the refusal is one that passes."""

    def __init__(
        self,
        client: Redis,
        base: str,
        settings: bytes,
        scripts: Mapping[str, Script],
        *,
        patience_s: float = 10.0,
        timeout_s: float = 5.0,
        replicas: int = 0,
    ) -> None:
        self.client = client
        self._timeout_s = timeout_s
        self.patience_s = patience_s
        self._base = base
        self.settings = settings
        self._scripts = scripts
        self._replicas = replicas
        self._replicas_timeout_ms = 2000

    async def __call__(
        self,
        verb: str,
        *args: str | bytes | int | float,
        patience_s: float | None = None,
        durable: bool = False,
    ) -> Any:
        """The script's answer. ``durable``: also wait for the replicas that the settings ask for.

        Raises :class:`QueueUnavailable` when ``patience_s`` is over, or at once for what will not pass.
        """
        script = self._scripts[verb]
        once = self._call_durably if durable and self._replicas else self._call
        return await self.patiently(lambda: once(script, args), verb, patience_s)

    async def patiently(
        self, action: Callable[[], Awaitable[T]], what: str, patience_s: float | None = None
    ) -> T:
        until = time.monotonic() + (self.patience_s if patience_s is None else patience_s)
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await action()
            except (RedisError, OSError) as error:  # the time that ran out is an OSError too
                left_s = until - time.monotonic()
                if not passes(error):
                    raise _translate(what, error) from error
                if left_s <= 0:
                    raise QueueUnavailable(
                        f"{what}: the queue's server did not serve it in time; last: {_brief(error)}"
                    ) from error
                if isinstance(error, _ELSEWHERE) or str(error).startswith(_ELSEWHERE_PREFIXES):
                    # Pooled connections lead to where they were opened: a primary that is one no longer.
                    await self.client.connection_pool.disconnect(inuse_connections=False)
            await asyncio.sleep(min(left_s, pause_s * random.uniform(0.5, 1.0)))
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    async def _call(self, script: Script, args: tuple[str | bytes | int | float, ...]) -> Any:
        try:
            return await self.client.execute_command(  # type: ignore[no-untyped-call]
                "EVALSHA", script.digest, 1, self._base, self.settings, *args
            )
        except NoScriptError:
            return await self.client.execute_command(  # type: ignore[no-untyped-call]
                "EVAL", script.text, 1, self._base, self.settings, *args
            )

    async def _call_durably(self, script: Script, args: tuple[str | bytes | int | float, ...]) -> Any:
        for _ in range(2):
            # One connection for both: WAIT speaks of the writes of its own connection.
            pipe = self.client.pipeline(transaction=False)
            pipe.execute_command("EVALSHA", script.digest, 1, self._base, self.settings, *args)
            pipe.execute_command("WAIT", self._replicas, self._replicas_timeout_ms)
            answer, copies = await pipe.execute(raise_on_error=False)
            if isinstance(answer, NoScriptError):
                await self.client.script_load(script.text)
                continue
            for result in (answer, copies):
                if isinstance(result, Exception):
                    raise result
            if int(copies) < self._replicas:
                raise TryAgainError(f"written, but only {copies} of {self._replicas} replicas have it")
            return answer
        raise TryAgainError("the server keeps forgetting the script")


def _translate(what: str, error: BaseException) -> Exception:
    text = _brief(error)
    if isinstance(error, AskError):  # MOVED is one too
        return QueueIncompatible(
            f"{what}: the queue's server is a member of a Redis Cluster, and a queue needs one that does not "
            f"run in cluster mode; the server says: {text}"
        )
    kind, _, rest = str(error).partition(" ")
    if kind == "OTHERLAYOUT":
        unfinished, _, noted = rest.partition(" ")
        return QueueIncompatible(
            f"{what}: the queue holds {unfinished} unfinished jobs for other tensors ({noted}) than this "
            "deployment's model has; give it a redis.namespace of its own, or wait until they have ended"
        )
    if "shebang" in text or "Unknown Redis command" in text:
        return QueueIncompatible(f"{what}: the queue needs Redis 7 or Valkey; the server says: {text}")
    return QueueUnavailable(f"{what}: the queue's server refused it: {text}")


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:300] or 'no answer in time'}"
