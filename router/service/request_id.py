"""The id of a queued request: made when it is queued, read when its caller asks again.

The id says which model's queue holds the request and which route took it. A retry that finds the first job by
its idempotency key gets the first one's id, and so its route too.
"""

from __future__ import annotations

import secrets
from typing import NamedTuple


class RequestId(NamedTuple):
    """``MODEL.ROUTE.TOKEN`` as text, of names that hold no dot."""

    model: str
    route: str
    token: str

    def __str__(self) -> str:
        return f"{self.model}.{self.route}.{self.token}"

    @classmethod
    def new(cls, model: str, route: str) -> RequestId:
        """An id that no other request has, with 96 random bits."""
        return cls(model, route, secrets.token_hex(12))

    @classmethod
    def parse(cls, text: str) -> RequestId:
        """Reads any text: one that no router made gives the id of no model."""
        model, _, rest = text.partition(".")
        route, _, token = rest.rpartition(".")
        return cls(model, route, token)
