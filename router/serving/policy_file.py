"""A policy file that may change while it is served. A valid change is applied; a broken file is refused, and
the policy in force stays.

A change that needs other processes (models, replicas, workers, the queue's server) is not applied here: the
command that serves replaces those processes, or you call ``serve deploy`` again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from router.policy import Policy, PolicyError, parse
from router.policy.changes import PendingPolicy, PolicyChange, State, needs_redeploy
from router.policy.reading import digest_of, text_of

_log = logging.getLogger("ray.serve")


class PolicyFile:
    """A policy file, and the policy that is in force; ``pending`` is set while the two differ.

    A change counts once the file has stayed the same between two looks, so that half a file is never read.
    """

    def __init__(self, path: str | Path, policy: Policy, digest: str) -> None:
        self.path, self.policy, self.digest = Path(path), policy, digest
        self.pending: PendingPolicy | None = None
        self._last_digest, self._stamp = digest, self._stat()

    @property
    def state(self) -> State:
        return "applied" if self.pending is None else self.pending.state

    def describe(self) -> dict[str, Any]:
        """For callers: what is in force, and whether another file waits. The reason is in the log only."""
        description: dict[str, Any] = {"digest": self.digest, "state": self.state, "pending": None}
        if self.pending is not None:
            since = datetime.fromtimestamp(self.pending.since_s, UTC).isoformat(timespec="seconds")
            description["pending"] = {"digest": self.pending.digest, "since": since}
        return description

    def _stat(self) -> tuple[int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size

    def look(self) -> PolicyChange:
        """Read the file if it has changed and come to rest. Never raises for what the file holds."""
        stamp = self._stat()
        settled, self._stamp = stamp == self._stamp, stamp
        if not settled:
            return self._same()
        try:
            text, problem = text_of(self.path), ""
        except PolicyError as error:
            text, problem = "", str(error)
        digest = digest_of(text)
        if digest == self._last_digest:
            return self._same()
        self._last_digest = digest
        if digest == self.digest:  # back to the policy in force
            self.pending = None
            return PolicyChange("applied", digest, self.policy)
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
        keys = needs_redeploy(self.policy, policy)
        if keys:
            problem = f"{self.path}: needs other processes: {', '.join(keys)} changed"
            return self._pending("needs redeploy", digest, policy, problem)
        self.policy, self.digest, self.pending = policy, digest, None
        return PolicyChange("applied", digest, policy)

    def deployed(self, change: PolicyChange) -> None:
        """The processes that a change needs have been replaced: it is in force."""
        self.policy, self.digest, self.pending = change.policy, change.digest, None

    def _same(self) -> PolicyChange:
        return PolicyChange("same", self.digest, self.policy, self.pending.problem if self.pending else None)

    def _refused(self, digest: str, problem: str) -> PolicyChange:
        return self._pending("refused", digest, self.policy, problem)

    def _pending(self, state: State, digest: str, policy: Policy, problem: str) -> PolicyChange:
        self.pending = PendingPolicy(state, digest, problem, time.time())
        return PolicyChange(state, digest, policy, problem)


async def follow(
    file: PolicyFile,
    apply: Callable[[PolicyChange], None],
    every_s: float = 0.5,
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
) -> None:
    """Look until cancelled, and call ``apply`` for every change, refused ones included."""
    while True:
        await sleep(every_s)
        # Reading and validating takes milliseconds, in which the router could answer many requests.
        change = await asyncio.to_thread(file.look)
        if change.outcome == "same":
            continue
        if change.outcome == "applied":
            _log.warning("policy %s applied: %s", change.digest, file.path)
        elif change.outcome == "needs redeploy":
            _log.warning(
                "policy %s waits for a deployment: `serve` begins one now, and `serve deploy` is for you to "
                "call again. Until then the old one stays. %s",
                change.digest,
                change.problem,
            )
        else:
            _log.error("policy %s refused, the old one stays: %s", change.digest, change.problem)
        apply(change)
