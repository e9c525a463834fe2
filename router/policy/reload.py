"""A changed policy file is taken over while serving; one that cannot be used is refused and the old stays.

What needs other processes (models, their replicas and workers, the queue's server) is not taken over here:
the command that serves replaces those processes one after the other, or ``serve deploy`` is called again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from router.policy.reading import PolicyError, Reading, parse, unreadable
from router.policy.reading import digest_of as digest_of
from router.policy.sections import Policy

_log = logging.getLogger("ray.serve")

#: ``applied``: in force here. ``needs redeploy``: good, and for other processes. ``refused``: of no use.
State = Literal["applied", "needs redeploy", "refused"]
Outcome = Literal["same"] | State


#: What only the router uses of a model's section, so that no process need be replaced for it.
_LIVE = frozenset(
    {
        "online.max_batch",
        "online.max_waiting",
        "online.in_time",
        "online.rescue.share",
        "online.ready_within",
        "batch.max_attempts",
    }
)


def needs_deploy(old: Policy, new: Policy) -> list[str]:
    """The keys that differ and that running processes cannot take over: ``models.digits.online.replicas``."""
    differing = _differing("models", old.models, new.models)
    keys = [key for key in differing if key.split(".", 2)[-1] not in _LIVE]
    before, after = old.queue_settings, new.queue_settings
    # Batch workers hold these, and tenants' bounds are the router's.
    keys += ["tenants: a weight"] if before["weights"] != after["weights"] else []
    keys += ["defaults.results.keep"] if before["keep_ms"] != after["keep_ms"] else []
    keys += ["redis.namespace"] if old.redis.namespace != new.redis.namespace else []
    return keys


def _differing(where: str, old: Any, new: Any) -> Iterator[str]:
    if old == new:
        return
    if hasattr(type(old), "model_fields") and type(old) is type(new):
        old, new = dict(old), dict(new)
    if not isinstance(old, dict) or not isinstance(new, dict):
        yield where
        return
    for key in sorted({*old, *new}):
        if key in old and key in new:
            yield from _differing(f"{where}.{key}", old[key], new[key])
        else:
            yield f"{where}.{key}"


@dataclass(frozen=True, slots=True)
class Look:
    """What became of the file: ``problem`` says why it was not taken over, one line each."""

    outcome: Outcome
    digest: str
    policy: Policy
    problem: str | None = None

    @property
    def reading(self) -> Reading:
        return Reading(self.policy, self.digest)


@dataclass(frozen=True, slots=True)
class Pending:
    """A file that is not in force: what became of it, and when that was seen, in seconds since 1970."""

    state: State
    digest: str
    problem: str
    since_s: float


class PolicyFile:
    """One policy file that may change, and the policy that is in force; ``pending`` while the two differ.

    A file is looked at once it has stayed the same between two looks, so that one half written is not read.
    """

    def __init__(self, path: str | Path, policy: Policy, digest: str) -> None:
        self.path, self.policy, self.digest = Path(path), policy, digest
        self.pending: Pending | None = None
        self._seen, self._stamp = digest, self._stat()

    @property
    def state(self) -> State:
        return "applied" if self.pending is None else self.pending.state

    def describe(self) -> dict[str, Any]:
        """For callers: what is in force, and that another is not; why is for whoever sees the log."""
        told: dict[str, Any] = {"digest": self.digest, "state": self.state, "pending": None}
        if self.pending is not None:
            since = datetime.fromtimestamp(self.pending.since_s, UTC).isoformat(timespec="seconds")
            told["pending"] = {"digest": self.pending.digest, "since": since}
        return told

    def _stat(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size

    def look(self) -> Look:
        """Read the file if it has changed and come to rest. Never raises for what is in it."""
        stamp = self._stat()
        settled, self._stamp = stamp == self._stamp, stamp
        if not settled:
            return self._same()
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            text, problem = "", unreadable(self.path, error)
        else:
            problem = ""
        digest = digest_of(text)
        if digest == self._seen:
            return self._same()
        self._seen = digest
        if digest == self.digest:  # back to what is in force
            self.pending = None
            return Look("applied", digest, self.policy)
        if problem:
            return self._refused(digest, problem)
        try:
            policy = parse(text, str(self.path))
        except PolicyError as error:
            return self._refused(digest, str(error))
        if self.policy.secured and not policy.secured:
            return self._refused(
                digest, f"{self.path}: tenants: the last key is gone; stop the server to open it"
            )
        keys = needs_deploy(self.policy, policy)
        if keys:
            problem = f"{self.path}: needs other processes: {', '.join(keys)} changed"
            return self._left("needs redeploy", digest, policy, problem)
        self.policy, self.digest, self.pending = policy, digest, None
        return Look("applied", digest, policy)

    def deployed(self, look: Look) -> None:
        """What `look` found to need other processes has got them."""
        self.policy, self.digest, self.pending = look.policy, look.digest, None

    def _same(self) -> Look:
        return Look("same", self.digest, self.policy, self.pending.problem if self.pending else None)

    def _refused(self, digest: str, problem: str) -> Look:
        return self._left("refused", digest, self.policy, problem)

    def _left(self, state: State, digest: str, policy: Policy, problem: str) -> Look:
        self.pending = Pending(state, digest, problem, time.time())
        return Look(state, digest, policy, problem)


async def follow(
    file: PolicyFile,
    take: Callable[[Look], None],
    every_s: float = 0.5,
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
) -> None:
    """Look until cancelled; ``take`` is told of everything but that nothing has changed."""
    while True:
        await sleep(every_s)
        # Reading and validating takes milliseconds, which would be many requests' time.
        look = await asyncio.to_thread(file.look)
        if look.outcome == "same":
            continue
        if look.outcome == "applied":
            _log.warning("policy %s applied: %s", look.digest, file.path)
        elif look.outcome == "needs redeploy":
            _log.warning(
                "policy %s waits for a deployment: `serve` begins one now, and `serve deploy` is for you to "
                "call again. Until then the old one stays. %s",
                look.digest,
                look.problem,
            )
        else:
            _log.error("policy %s refused, the old one stays: %s", look.digest, look.problem)
        take(look)
