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
    """The most jobs in each queue. Example: ``10000``"""
    bytes: Bytes | None = None
    """The most bytes in each queue. Example: ``256MiB``"""


class TenantLimits(Section):
    """What one tenant may ask for, over all models. Without a limit it is not counted."""

    rate: PerSecond | None = None
    """Requests a second. Example: ``100/s``"""
    burst: Annotated[int, Field(ge=1)] | None = None
    """The requests that may come at once. By default a second's worth. Example: ``200``"""
    row_rate: PerSecond | None = None
    """Rows a second. Example: ``5000/s``"""
    in_flight: Annotated[int, Field(ge=1)] | None = None
    """The requests that may be in flight at one time. Example: ``50``"""
    queue: TenantQueue = TenantQueue()
    """What may be in the queues at once. Example: ``{jobs: 10000, bytes: 256MiB}``"""


class Tenant(TenantLimits):
    """One tenant: its keys, its share of the workers, and its own limits."""

    keys: tuple[KeyHash, ...] = ()
    """The hashes of the API keys, as `hybrid-router key new` prints them. Example: ``["sha256:..."]``"""
    weight: Annotated[float, Field(gt=0, le=1_000)] = 1.0
    """The share of the batch workers while other tenants wait too. Example: ``3``"""
    models: Names | None = None
    """The models that the tenant may use. By default all. Example: ``[digits]``"""
