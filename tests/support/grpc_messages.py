"""gRPC messages to tensors and back in one go, which a router does in steps."""

from __future__ import annotations

from typing import Any

from router.ingress.codec.protocol import DecodedBody
from router.ingress.codec.steps import finish
from router.ingress.grpc.protocol import decode_steps, encode_steps


def decode(request: Any) -> DecodedBody:
    return finish(decode_steps(request))


def encode(*arguments: Any, **fields: Any) -> bytes:
    return finish(encode_steps(*arguments, **fields))
