"""What a queue's server must be like before anything is accepted into it, and whose jobs it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from optimizers.tensors import TensorSpec
from workers.queue.contract import QueueIncompatible, QueueUnavailable
from workers.queue.redis.client import connect
from workers.queue.redis.queue import RedisQueue

_TIMEOUT_S = 5.0


def layout_of(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """A model's inputs and outputs in one line: deployments that share a queue must agree on it."""
    sides = (", ".join(f"{x.name} {x.datatype}{list(x.shape)}" for x in side) for side in (inputs, outputs))
    return " -> ".join(sides)


async def check_server(url: str) -> list[str]:
    """Warnings about the server. Raises :class:`QueueUnavailable` if the server does not answer and
    :class:`QueueIncompatible` if it cannot hold a queue: a member of a cluster, or one that deletes jobs."""
    client = connect(url)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await client.ping()
            if (await _section(client, "cluster")).get("cluster_enabled"):
                raise QueueIncompatible(
                    "the server is a member of a Redis Cluster, and a queue needs a server of its own: "
                    "name one that does not run in cluster mode"
                )
            return _eviction(await _memory(client))
    except (RedisError, OSError) as error:
        raise QueueUnavailable(
            f"the server cannot be reached: {str(error) or 'no answer in time'}"
        ) from error
    finally:
        await client.aclose()


async def check_layouts(url: str, namespace: str, layouts: Mapping[str, str]) -> list[str]:
    """Warnings for models and their layouts. Raises :class:`QueueIncompatible` where a queue holds
    unfinished jobs of a model with another layout."""
    warnings = []
    for model, layout in layouts.items():
        queue = RedisQueue.open(url, model, namespace=namespace, layout=layout, patience_s=_TIMEOUT_S)
        try:
            noted, unfinished = await queue.layout()
        finally:
            await queue.close()
        if noted and noted != layout:
            if unfinished:
                raise QueueIncompatible(other_layout(model, namespace, layout, noted, unfinished))
            warnings.append(
                f"the queue of model {model!r} was last used for other tensors ({noted}); if another "
                f"deployment uses namespace {namespace!r} too, give this one a redis.namespace of its own"
            )
    return warnings


def other_layout(model: str, namespace: str, layout: str, noted: str, unfinished: int) -> str:
    """Why a deployment may not use the queue."""
    return (
        f"the queue of model {model!r} in namespace {namespace!r} holds {unfinished} unfinished jobs for "
        f"other tensors: they are for {noted}, and this deployment's model has {layout}; give this "
        "deployment a redis.namespace of its own, or wait until those jobs have ended"
    )


async def _section(client: Redis, name: str) -> Mapping[str, Any]:
    """A section of ``INFO``; empty where the server does not allow it."""
    try:
        section: Mapping[str, Any] = await client.info(name)
    except RedisError:
        return {}
    return section


async def _memory(client: Redis) -> tuple[str | None, int]:
    """The eviction policy and the memory from which it applies (0: none); None where it is not reported."""
    info = await _section(client, "memory")
    policy, limit = info.get("maxmemory_policy"), info.get("maxmemory")
    try:
        if policy is None or limit is None:
            config = await client.config_get("maxmemory", "maxmemory-policy")
            policy, limit = config.get("maxmemory-policy"), config.get("maxmemory")
    except RedisError:
        pass  # managed servers forbid it
    return policy, int(limit or 0)


def _eviction(memory: tuple[str | None, int]) -> list[str]:
    policy, limit = memory
    if policy is None:
        return ["the server does not report its maxmemory-policy; make sure that it is noeviction"]
    if policy == "noeviction" or not limit:
        return []
    if policy.startswith("allkeys"):
        raise QueueIncompatible(
            f"the server's maxmemory-policy is {policy}: at {limit} bytes it deletes accepted jobs; "
            "set it to noeviction, or use a server of its own for the queue"
        )
    return [
        f"the server's maxmemory-policy is {policy}: at {limit} bytes it deletes results before their time; "
        "set it to noeviction"
    ]
