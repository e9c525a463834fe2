"""How much a tenant may ask for: rates as token buckets, and requests in flight. Pure: time is an argument.

A bucket is one number, the time at which it will be full again (the generic cell rate algorithm, ITU-T
I.371): a request that would push it further ahead than the burst allows is refused, with the time until it
would not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from router.policy.tenants import TenantLimits


class Over(NamedTuple):
    """What is over, in words, and when to come back; None where it depends on others' requests ending."""

    what: str
    retry_after_s: float | None


@dataclass(slots=True)
class _Bucket:
    """``full_at_ms`` is when all that was taken will have flowed back."""

    full_at_ms: float = 0.0

    def wait_ms(self, cost: float, per_s: float, burst: float, now_ms: float) -> float:
        """How long until ``cost`` fits; 0 where it does now. More than the burst fits into a full bucket."""
        ahead_ms = max(0.0, self.full_at_ms - now_ms)
        return max(0.0, ahead_ms - max(0.0, burst - cost) * 1_000.0 / per_s)

    def take(self, cost: float, per_s: float, now_ms: float) -> None:
        self.full_at_ms = max(self.full_at_ms, now_ms) + cost * 1_000.0 / per_s


class Quotas:
    """The buckets of one router. ``limits_of`` gives a tenant's limits; ``routers`` share them evenly."""

    def __init__(self, limits_of: Callable[[str], TenantLimits], routers: int = 1) -> None:
        self.limits_of, self._routers = limits_of, routers
        self._requests: dict[str, _Bucket] = {}
        self._rows: dict[str, _Bucket] = {}
        self._in_flight: Counter[str] = Counter()

    def enter(self, tenant: str, now_ms: float) -> Over | None:
        """Count one request in, unless that is too much. Who is let in must `leave`."""
        limits = self.limits_of(tenant)
        if limits.in_flight is not None and self._in_flight[tenant] >= self._part(limits.in_flight):
            return Over(f"{limits.in_flight} requests of tenant {tenant!r} are in flight already", None)
        if limits.rate is not None:
            per_s = limits.rate / self._routers
            burst = self._part(limits.burst or max(1.0, limits.rate))
            bucket = self._requests.setdefault(tenant, _Bucket())
            wait_ms = bucket.wait_ms(1.0, per_s, burst, now_ms)
            if wait_ms > 0.0:
                return Over(f"tenant {tenant!r} is over its {limits.rate:g} requests/s", wait_ms / 1_000.0)
            bucket.take(1.0, per_s, now_ms)
        self._in_flight[tenant] += 1
        return None

    def leave(self, tenant: str) -> None:
        self._in_flight[tenant] -= 1

    def take_rows(self, tenant: str, rows: int, now_ms: float) -> Over | None:
        """Count the rows of a request that was let in, unless they are too many."""
        limits = self.limits_of(tenant)
        if limits.row_rate is None:
            return None
        per_s = limits.row_rate / self._routers
        bucket = self._rows.setdefault(tenant, _Bucket())
        wait_ms = bucket.wait_ms(rows, per_s, max(1.0, per_s), now_ms)
        if wait_ms > 0.0:
            return Over(f"tenant {tenant!r} is over its {limits.row_rate:g} rows/s", wait_ms / 1_000.0)
        bucket.take(rows, per_s, now_ms)
        return None

    def _part(self, count: float) -> float:
        """One router's part of a count, and never less than one."""
        return max(1.0, count / self._routers)
