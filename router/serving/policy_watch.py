"""While a policy is served in the foreground: what becomes of a changed file is said to the person who
watches, and processes are replaced where the change needs others. Routes and tenants the router takes over by
itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from router.policy import Policy, PolicyError, Reading
from router.policy.artifacts import read_manifests
from router.policy.changes import PolicyChange
from router.policy.sections import RedisSection
from router.serving.policy_file import PolicyFile


def follow(
    path: Path,
    policy: Policy,
    digest: str,
    deploy: Callable[[Reading], None],
    say: Callable[[str], None],
    stop: threading.Event,
    every_s: float = 0.5,
) -> None:
    """Watch the file until ``stop``; ``deploy`` replaces the running processes by those of a policy."""
    file = PolicyFile(path, policy, digest)
    while not stop.wait(every_s):
        before, change = file.policy, file.look()
        if change.outcome in ("applied", "needs redeploy"):
            if _server(before.redis) != _server(change.policy.redis):
                say("policy: 'redis' has changed, which needs a stop and a start; the rest is applied")
            if change.policy.limits.body > max(before.limits.body, policy.limits.body):
                say("policy: 'limits.body' has grown; gRPC takes such messages after a stop and a start")
        if change.outcome == "applied":
            say(f"policy {change.digest} applied")
        elif change.outcome == "refused":
            say(f"policy {change.digest} refused, the old one stays:\n{change.problem}")
        elif change.outcome == "needs redeploy":
            _replace(file, change, deploy, say)


def _server(section: RedisSection) -> tuple[str | None, str, str]:
    """What the section says of the queue's server; its folder may have been given on the command line."""
    return section.url, section.namespace, section.fsync


def _replace(
    file: PolicyFile, change: PolicyChange, deploy: Callable[[Reading], None], say: Callable[[str], None]
) -> None:
    try:
        read_manifests(change.policy, str(file.path))
    except PolicyError as error:
        say(f"policy {change.digest} refused, the old one stays:\n{error}")
        return
    say(f"policy {change.digest}: replacing processes one after the other; no request is lost")
    begun = time.monotonic()
    try:
        deploy(change.reading)
    except (PolicyError, RuntimeError) as error:
        say(f"policy {change.digest} could not be deployed, see the log: {error}")
        return
    file.deployed(change)
    say(f"policy {change.digest} applied in {time.monotonic() - begun:.1f} s")
