"""What the tests of the ingress share."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from tests.support.served import Served
from workers.queue.contract import QueueUnavailable

#: A budget for which work is queued, ms.
LONG = 60_000


def post(served: Served, *values: float, **about: Any) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(served.infer(*values, **about))


def the_problem(response: httpx.Response, status: int) -> str:
    """The sentence of a problem document, after checks that hold for each of them."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["title"]
    assert body["error"] == body["detail"]
    detail: str = body["detail"]
    assert 10 < len(detail) < 300
    assert "\n" not in detail
    assert "Traceback" not in response.text and ".py" not in response.text
    return detail


async def down(*args: Any, **kwargs: Any) -> Any:
    raise QueueUnavailable("connection refused")
