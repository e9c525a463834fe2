"""hybrid-router: one endpoint for inference requests of every urgency. Here is its SDK.

>>> from router import Client
>>> with Client("http://127.0.0.1:8000") as client:
...     result = client.infer("digits", image, budget="1s")
>>> print(result.outputs["label"], result.path)
[3] online

The server's modules are not imported with it: neither Ray nor torch need be installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from router.sdk.async_client import AsyncClient as AsyncClient
    from router.sdk.client import Client as Client
    from router.sdk.codec import ModelInfo as ModelInfo
    from router.sdk.codec import Result as Result
    from router.sdk.errors import DeadlineExceeded as DeadlineExceeded
    from router.sdk.errors import Forbidden as Forbidden
    from router.sdk.errors import HybridRouterError as HybridRouterError
    from router.sdk.errors import InvalidRequest as InvalidRequest
    from router.sdk.errors import JobCancelled as JobCancelled
    from router.sdk.errors import JobFailed as JobFailed
    from router.sdk.errors import JobUnknown as JobUnknown
    from router.sdk.errors import ModelNotFound as ModelNotFound
    from router.sdk.errors import ProtocolError as ProtocolError
    from router.sdk.errors import Rejected as Rejected
    from router.sdk.errors import ResultPending as ResultPending
    from router.sdk.errors import ServerUnavailable as ServerUnavailable
    from router.sdk.errors import Unauthenticated as Unauthenticated
    from router.sdk.errors import Unauthorized as Unauthorized
    from router.sdk.jobs import AsyncJob as AsyncJob
    from router.sdk.jobs import Job as Job

_HOMES = {
    "router.sdk.async_client": ("AsyncClient",),
    "router.sdk.client": ("Client",),
    "router.sdk.jobs": ("AsyncJob", "Job"),
    "router.sdk.codec": ("ModelInfo", "Result"),
    "router.sdk.errors": (
        "DeadlineExceeded",
        "Forbidden",
        "HybridRouterError",
        "InvalidRequest",
        "JobCancelled",
        "JobFailed",
        "JobUnknown",
        "ModelNotFound",
        "ProtocolError",
        "Rejected",
        "ResultPending",
        "ServerUnavailable",
        "Unauthenticated",
        "Unauthorized",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
