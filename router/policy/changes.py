"""What changes between one policy and the next, and whether running processes can apply it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from router.policy.document import Policy
from router.policy.reading import Reading

#: ``applied``: in force. ``needs redeploy``: valid, but other processes have to be replaced. ``refused``: the
#: file cannot be used.
State = Literal["applied", "needs redeploy", "refused"]

#: Keys of a model's section that only the router uses, so that it applies them by itself.
_ROUTER_ONLY = frozenset(
    {
        "online.max_batch",
        "online.max_waiting",
        "online.in_time",
        "online.rescue.share",
        "online.ready_within",
        "batch.max_attempts",
    }
)


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """The result of one look at a policy file.

    ``policy`` is the new policy, or the one in force where the new one is refused. ``problem`` says why the
    change is not applied, one line for each reason.
    """

    outcome: Literal["same"] | State
    digest: str
    policy: Policy
    problem: str | None = None

    @property
    def reading(self) -> Reading:
        return Reading(self.policy, self.digest)


@dataclass(frozen=True, slots=True)
class PendingPolicy:
    """A file that is not in force: why, and since when, in seconds since 1970."""

    state: State
    digest: str
    problem: str
    since_s: float


def needs_redeploy(old: Policy, new: Policy) -> list[str]:
    """The keys that differ and that running processes cannot apply: ``models.digits.online.replicas``."""
    differing = _differing("models", old.models, new.models)
    keys = [key for key in differing if key.split(".", 2)[-1] not in _ROUTER_ONLY]
    before, after = old.queue_settings, new.queue_settings
    # Batch workers hold these. The tenants' bounds are the router's.
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
