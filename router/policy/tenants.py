"""Who may ask, and how much: the tenants of a policy, their keys as hashes, their shares and their limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from router.policy.terms.values import Bytes, Names, PerSecond, Section

#: How an API key stands in a policy file; `hybrid-router key new` makes both.
KEY_PATTERN = r"^sha256:[0-9a-f]{64}$"
KeyHash = Annotated[str, Field(pattern=KEY_PATTERN)]


class TenantQueue(Section):
    """What one tenant may have in the queue of each model at once."""

    jobs: Annotated[int, Field(ge=1)] | None = None
    bytes: Bytes | None = None


class TenantLimits(Section):
    """What one tenant may ask for, over all models. ``rate`` counts requests and ``row_rate`` rows; a
    ``burst`` of requests may come at once (default: a second's worth). ``in_flight`` bounds the requests
    that are waited for at one time."""

    rate: PerSecond | None = None
    burst: Annotated[int, Field(ge=1)] | None = None
    row_rate: PerSecond | None = None
    in_flight: Annotated[int, Field(ge=1)] | None = None
    queue: TenantQueue = TenantQueue()


class Tenant(TenantLimits):
    """One tenant. ``weight`` is its share of the batch workers while others wait too; ``models`` are those
    that it may use (default: all)."""

    keys: tuple[KeyHash, ...] = ()
    weight: Annotated[float, Field(gt=0, le=1_000)] = 1.0
    models: Names | None = None
