"""A gRPC message as bytes: all that Serve asks of a message is to be made of bytes, and to give them."""

from __future__ import annotations


class RawMessage:
    """Serve makes it from a request's bytes, and asks an answer for its own."""

    __slots__ = ("data",)

    def __init__(self, data: bytes = b"") -> None:
        self.data = data

    def SerializeToString(self) -> bytes:
        return self.data
