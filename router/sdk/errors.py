"""What can go wrong for a caller of the SDK.

    HybridRouterError
    ├── InvalidRequest (ValueError)         the request cannot be served as it is; mend it
    ├── ModelNotFound (LookupError)         the server knows no such model or variant
    ├── Unauthorized (PermissionError)      this caller may not
    │   ├── Unauthenticated                 no API key, or one that the server does not know
    │   └── Forbidden                       a key that the server knows, and that may not do this
    ├── Rejected                            refused before any work: over quota, or it would be late
    ├── DeadlineExceeded (TimeoutError)     the budget is over and there is no answer
    ├── ResultPending (TimeoutError)        the budget is not over, but the caller's own wait is
    ├── JobFailed                           the work was run and failed
    ├── JobCancelled                        the work was cancelled
    ├── JobUnknown (LookupError)            the server knows no such request, or no longer
    ├── ServerUnavailable (ConnectionError) not reached, or reached and not ready
    └── ProtocolError                       an answer that is not in the protocol

The message holds the server's own reason where there is one. No network library's exception
passes through the SDK.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class HybridRouterError(Exception):
    """Any failure that the SDK reports.

    ``status`` is the HTTP status, None where no answer came. ``problem`` is the server's problem
    document (RFC 9457), empty where it sent none. ``id`` is the request's, where it has one.

    >>> from router import HybridRouterError
    >>> try:
    ...     client.infer("digits", "not an image")
    ... except HybridRouterError as error:
    ...     print(type(error).__name__, error.status)
    InvalidRequest None
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        problem: Mapping[str, Any] | None = None,
        id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.problem: Mapping[str, Any] = problem or {}
        self.id = id


class InvalidRequest(HybridRouterError, ValueError):
    """The request cannot be taken, by the server or the SDK: shape, dtype, name, size, a key reused.

    >>> client.infer("digits", [1.0, 2.0])
    Traceback (most recent call last):
    router.sdk.errors.InvalidRequest: input 'image': the model takes shape [-1, 1, 8, 8] ..., got [2]
    """


class ModelNotFound(HybridRouterError, LookupError):
    """The server serves no model, or no variant of it, by this name.

    >>> client.model("digit")
    Traceback (most recent call last):
    router.sdk.errors.ModelNotFound: ...digit...
    """


class Unauthorized(HybridRouterError, PermissionError):
    """The server does not take this from this caller: one of the two below."""


class Unauthenticated(Unauthorized):
    """The server asks for an API key, or does not know this one. Pass ``key=``, or set HYBRID_ROUTER_KEY."""


class Forbidden(Unauthorized):
    """The server knows the API key, and its tenant may not do this: another model, another tenant's name."""


class Rejected(HybridRouterError):
    """Refused before any work was done. ``retry_after_s`` says when to try again, None where it does not.

    >>> from router import Rejected
    >>> try:
    ...     client.infer("digits", image, budget="0.1ms")
    ... except (Rejected, DeadlineExceeded) as error:
    ...     print("not in a tenth of a millisecond")
    not in a tenth of a millisecond
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, **about: Any) -> None:
        super().__init__(message, **about)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(HybridRouterError, TimeoutError):
    """The latency budget is over and there is no answer: expired at the server, or no word from it.

    >>> import time
    >>> with client.deadline("10ms"):
    ...     time.sleep(0.02)
    ...     client.infer("digits", image)
    Traceback (most recent call last):
    router.sdk.errors.DeadlineExceeded: the latency budget that calls share here was over before ...
    """


class ResultPending(HybridRouterError, TimeoutError):
    """The caller's own wait is over before the request ended. It goes on: ask again by ``id``."""


class JobFailed(HybridRouterError):
    """The model was run on this request and failed."""


class JobCancelled(HybridRouterError):
    """The request was cancelled before it ended."""


class JobUnknown(HybridRouterError, LookupError):
    """No request by this id: it never was, belongs to another tenant, or its result is no longer kept.

    >>> client.job("digits.0123456789abcdef").state()
    Traceback (most recent call last):
    router.sdk.errors.JobUnknown: ...
    """


class ServerUnavailable(HybridRouterError, ConnectionError):
    """The server could not be reached or is not ready, for as long as it was worth trying.

    >>> Client("http://127.0.0.1:1", retry_for="10ms").models()
    Traceback (most recent call last):
    router.sdk.errors.ServerUnavailable: cannot reach http://127.0.0.1:1: ...
    """


class ProtocolError(HybridRouterError):
    """The answer is not what the protocol says. Is there another server, or a proxy, at this address?"""
