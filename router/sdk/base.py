"""What both clients of the SDK share: how one is made, and the core that it drives."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sized

from router.sdk.core import ClientCore
from router.sdk.deadline import Budget, DeadlineBlock
from router.sdk.effects import Options
from router.sdk.map import MapPlan
from router.units import duration_ms

#: Where the API key is taken from by a client that is given none.
KEY_VARIABLE = "HYBRID_ROUTER_KEY"


class BaseClient:
    """What both clients have: the core, and the codec between it and httpx."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None,
        tenant: str | None,
        headers: Mapping[str, str] | None,
        timeout: Budget,
        grace: Budget,
        retry_for: Budget,
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        from router.sdk.http import HttpCodec

        self._http = HttpCodec(url)
        self._core = ClientCore(
            self._http.server,
            clock=clock,
            jitter=jitter,
            headers=_headers(key, tenant, headers),
            timeout_s=duration_ms(timeout) / 1e3,
            grace_s=duration_ms(grace) / 1e3,
            retry_for_s=duration_ms(retry_for) / 1e3,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.server!r})"

    def deadline(self, budget: Budget) -> DeadlineBlock:
        """This client's calls within the block share one budget, which shrinks as they spend it.

        It holds for the block's own thread or task and for tasks that are started in it; threads have
        budgets of their own. A call's ``budget`` and an inner block can only shorten it. For ``with``
        and ``async with``.

        >>> with client.deadline("2s") as deadline:
        ...     first = client.infer("digits", image)
        ...     second = client.infer("digits", image)  # in what the first left of the 2 s
        >>> 0 < deadline.left_ms < 2000
        True
        """
        return DeadlineBlock(self._core, budget, self._core.clock)

    def _plan(
        self,
        model: str,
        budget: Budget | None,
        rows_per_request: int,
        concurrency: int,
        options: Options,
        on_error: str,
    ) -> MapPlan:
        if on_error not in ("raise", "return"):
            raise ValueError(f"on_error is 'raise' or 'return', not {on_error!r}")
        return MapPlan(
            self._core,
            model,
            self._core.limit(budget),
            rows_per_request=rows_per_request,
            concurrency=concurrency,
            options=options,
            return_errors=on_error == "return",
        )


def _headers(key: str | None, tenant: str | None, headers: Mapping[str, str] | None) -> dict[str, str]:
    """Raises ValueError for what cannot stand in a header, without repeating its value."""
    merged = {"User-Agent": "hybrid-router", **(headers or {})}
    if key is None and not any(name.lower() in ("authorization", "x-api-key") for name in merged):
        key = os.environ.get(KEY_VARIABLE)
    # What was read from a file ends with a line break, and may begin with a byte order mark.
    if key and (key := key.strip().lstrip("\ufeff").strip()):
        merged["Authorization"] = f"Bearer {key}"
    if tenant is not None:
        merged["Tenant"] = tenant
    for name, value in merged.items():
        if not (name.isascii() and value.isascii() and (name + value).isprintable()):
            raise ValueError(f"header {name!r}: only printable ASCII can be sent")
    return merged


def length_of(items: object) -> int | None:
    """How many items there are, None for a generator."""
    return len(items) if isinstance(items, Sized) else None
