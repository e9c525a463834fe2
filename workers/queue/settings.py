"""The bounds and lifetimes of one model's queue. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workers.queue.retry import RetryPolicy


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Bounds and lifetimes of one model's queue.

    ``keep_ms``: how long a result or another terminal state stays readable. ``keep_dead_ms`` and
    ``max_dead_letters`` bound the dead letters. ``tenant_jobs``/``tenant_bytes`` bound each tenant
    (``None``: only the model's bounds); ``bounds`` gives jobs and bytes of those tenants that have their
    own. ``weights``: a tenant's share of the claims while others wait too (default 1).
    ``max_lost_leases``: a job whose worker dies this often is dead; from ``suspect_after`` lost leases on,
    or once a worker gave up on it, it is claimed alone, so that it takes no other job down with it.
    """

    max_jobs: int = 1_000_000
    max_bytes: int = 4 << 30
    tenant_jobs: int | None = None
    tenant_bytes: int | None = None
    bounds: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    keep_ms: int = 24 * 3600 * 1000
    keep_dead_ms: int = 7 * 24 * 3600 * 1000
    max_dead_letters: int = 10_000
    max_lost_leases: int = 10
    suspect_after: int = 3
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    def __post_init__(self) -> None:
        for name in (
            "max_jobs",
            "max_bytes",
            "keep_ms",
            "keep_dead_ms",
            "max_dead_letters",
            "max_lost_leases",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"queue settings: {name} is {getattr(self, name)}, must be 1 or more")
        for name in ("tenant_jobs", "tenant_bytes"):
            bound = getattr(self, name)
            if bound is not None and bound < 1:
                raise ValueError(f"queue settings: {name} is {bound}, must be 1 or more, or absent")
        if not 1 <= self.suspect_after <= self.max_lost_leases:
            raise ValueError(
                f"queue settings: suspect_after {self.suspect_after} must lie between 1 "
                f"and max_lost_leases {self.max_lost_leases}"
            )
        for tenant, weight in self.weights.items():
            if not weight > 0:
                raise ValueError(f"queue settings: weight of tenant {tenant!r} is {weight}, must be above 0")
        for tenant, own in self.bounds.items():
            if any(bound is not None and bound < 1 for bound in own):
                raise ValueError(f"queue settings: a bound of tenant {tenant!r} is below 1: {own}")

    def tenant_bounds(self, tenant: str) -> tuple[int | None, int | None]:
        """The most jobs and bytes of one tenant: its own bounds, else those of every tenant."""
        jobs, size = self.bounds.get(tenant, (None, None))
        return jobs or self.tenant_jobs, size or self.tenant_bytes


def settings_from(values: Mapping[str, Any]) -> QueueSettings:
    """Queue settings from plain values. Raises ``TypeError`` or ``ValueError`` for what is none."""
    fields = dict(values)
    if isinstance(fields.get("retry"), Mapping):
        fields["retry"] = RetryPolicy(**fields["retry"])
    return QueueSettings(**fields)
