"""What passes between the SDK's core and its clients: what to send, how long to wait, what is known."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from router.sdk.codec import Result
from router.sdk.deadline import Limit
from router.sdk.responses import NoResponse, Reply

T = TypeVar("T")
Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Send:
    """Send this request and give its reply within ``timeout_s``. ``path`` is below the client's URL.

    The headers hold the API key, the content is the caller's own: neither is printed.
    """

    method: str
    path: str
    headers: Headers = field(repr=False)
    content: bytes = field(repr=False)
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Sleep:
    """Do nothing for so long."""

    seconds: float


Flow = Generator[Send | Sleep, Reply | NoResponse | None, T]


@dataclass(frozen=True, slots=True)
class Options:
    """What a request may ask for beyond its inputs and budget."""

    variant: str | None = None
    idempotency_key: str | None = None
    outputs: Sequence[str] | None = None
    parameters: Mapping[str, Any] | None = None


@dataclass(slots=True)
class Ticket:
    """What is known of a request: its id once the server has given one, its result once there is one.

    ``outputs`` are the ones to ask for when it is done; all where None.
    """

    limit: Limit
    id: str | None = None
    outputs: Sequence[str] | None = None
    result: Result | None = None
    abandoned: bool = False


@dataclass(frozen=True, slots=True)
class ApiCall:
    """One exchange, tries and all.

    No try starts after the budget is over, unless it ``polls``: waits for the end of a request that is
    taken. ``carries_budget``: the deadline goes with it. ``job_id``: it asks for the fate of that request.
    """

    method: str
    path: str
    headers: Headers = field(repr=False)
    content: bytes = field(default=b"", repr=False)
    carries_budget: bool = False
    job_id: str | None = None
    polls: bool = False
