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

#: When to come back for a place in flight: nobody knows when one of those that have it will end.
_PLACE_AFTER_S = 1.0


class Over(NamedTuple):
    """What is over, in words, and when to come back."""

    what: str
    retry_after_s: float


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

    def give_back(self, cost: float, per_s: float) -> None:
        self.full_at_ms -= cost * 1_000.0 / per_s


class Quotas:
    """The buckets of one router. ``limits_of`` gives a tenant's limits; ``routers`` share them evenly."""

    def __init__(self, limits_of: Callable[[str], TenantLimits], routers: int = 1) -> None:
        self.limits_of, self._routers = limits_of, routers
        self._requests: dict[str, _Bucket] = {}
        self._rows: dict[str, _Bucket] = {}
        self._in_flight: Counter[str] = Counter()

    def has_place(self, tenant: str) -> bool:
        """Whether one more request of the tenant may be in flight."""
        limit = self.limits_of(tenant).in_flight
        return limit is None or self._in_flight[tenant] < self._part(limit)

    def enter(self, tenant: str, now_ms: float) -> Over | None:
        """Count one request in, unless that is too much. Who is let in must `leave`."""
        if not self.has_place(tenant):
            limit = self.limits_of(tenant).in_flight
            return Over(f"{limit} requests of tenant {tenant!r} are in flight already", _PLACE_AFTER_S)
        over = self.enter_briefly(tenant, now_ms)
        if over is None:
            self._in_flight[tenant] += 1
        return over

    def enter_briefly(self, tenant: str, now_ms: float) -> Over | None:
        """Count one request that takes no place in flight, since it is answered at once."""
        limits = self.limits_of(tenant)
        if limits.rate is not None:
            per_s = limits.rate / self._routers
            burst = self._part(limits.burst or max(1.0, limits.rate))
            bucket = self._requests.setdefault(tenant, _Bucket())
            wait_ms = bucket.wait_ms(1.0, per_s, burst, now_ms)
            if wait_ms > 0.0:
                return Over(f"tenant {tenant!r} is over its {limits.rate:g} requests/s", wait_ms / 1_000.0)
            bucket.take(1.0, per_s, now_ms)
        return None

    def leave(self, tenant: str) -> None:
        self._in_flight[tenant] -= 1

    def over_rows(self, tenant: str, rows: int, now_ms: float) -> Over | None:
        """Whether the rows of a request that was let in are too many now."""
        limit = self.limits_of(tenant).row_rate
        if limit is None:
            return None
        per_s = limit / self._routers
        wait_ms = self._rows.setdefault(tenant, _Bucket()).wait_ms(rows, per_s, max(1.0, per_s), now_ms)
        if wait_ms <= 0.0:
            return None
        return Over(f"tenant {tenant!r} is over its {limit:g} rows/s", wait_ms / 1_000.0)

    def take_rows(self, tenant: str, rows: int, now_ms: float) -> None:
        """Count the rows of a request that is accepted."""
        limit = self.limits_of(tenant).row_rate
        if limit is not None:
            self._rows.setdefault(tenant, _Bucket()).take(rows, limit / self._routers, now_ms)

    def give_rows_back(self, tenant: str, rows: int) -> None:
        """Undo `take_rows` for a request that was refused after all."""
        limits = self.limits_of(tenant)
        if limits.row_rate is not None and tenant in self._rows:
            self._rows[tenant].give_back(rows, limits.row_rate / self._routers)

    def _part(self, count: float) -> float:
        """One router's part of a count, and never less than one."""
        return max(1.0, count / self._routers)
