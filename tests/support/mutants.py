"""Random and mutated bodies against a whole ingress in memory: all are answered, and none with a 5xx.

Seeded, so that a body which does harm can be made again from its number.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import random
import subprocess
import sys
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from router.ingress.codec.protocol import HEADER_LENGTH
from router.ingress.http.application import Ingress
from tests.support.served import serving
from tests.support.virtual_time import VirtualLoop

#: Values that stand where others are expected.
_ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    2**64 - 1,
    1e308,
    -0.0,
    "",
    "x",
    "\u0000",
    "BF16",
    "BYTES",
    "INT8",
    [],
    {},
    [[]],
    [0] * 20,
    [1 << 40],
    {"binary_data_size": 4},
    {"binary_data_size": 2**62},
)
_NUMBERS = (b"0", b"-1", b"4", b"8", b"99999999999", b"1e9", b"true", b"null", b"[]")


@dataclass(frozen=True)
class Sent:
    """One request that is tried."""

    number: int
    body: bytes
    headers: Mapping[bytes, bytes]


@dataclass
class Found:
    """What the bodies did."""

    statuses: Counter[int] = field(default_factory=Counter)
    #: Those that were answered with a 5xx, not at all, or not by a problem document.
    harmful: list[tuple[Sent, int]] = field(default_factory=list)
    #: Python's own memory, bytes, after each of the numbers of bodies that were asked for.
    memory_bytes: list[int] = field(default_factory=list)


def bodies(count: int, seed: int) -> Iterator[Sent]:
    """Bodies made from good ones by a handful of changes each, and some that are noise from the start."""
    for number in range(count):
        chance = random.Random(f"{seed}:{number}")
        body, headers = _start(chance)
        if chance.random() < 0.9:
            for _ in range(chance.randint(1, 4)):
                body = _mutated(body, chance)
        if chance.random() < 0.08:
            coding = chance.choice((b"gzip", b"deflate", b"gzip", b"br"))
            packed = gzip.compress(body, 1, mtime=0) if coding == b"gzip" else zlib.compress(body, 1)
            body = packed if chance.random() < 0.5 else _mutated(packed, chance)
            headers[b"content-encoding"] = coding
        if chance.random() < 0.1:
            headers[HEADER_LENGTH.encode()] = chance.choice(_NUMBERS)
        yield Sent(number, body[:4_000], headers)


def _start(chance: random.Random) -> tuple[bytes, dict[bytes, bytes]]:
    if chance.random() < 0.05:
        return chance.randbytes(chance.randint(0, 300)), {}
    rows = chance.randint(1, 3)
    entry: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [rows, 1]}
    tail = b""
    if chance.random() < 0.7:
        tail = chance.randbytes(4 * rows)
        entry["parameters"] = {"binary_data_size": len(tail)}
    else:
        entry["data"] = [chance.uniform(-9, 9) for _ in range(rows)]
    message: dict[str, Any] = {"inputs": [entry]}
    if chance.random() < 0.5:
        message["parameters"] = {"binary_data_output": chance.random() < 0.7}
    if chance.random() < 0.3:
        message["outputs"] = [{"name": "y", "parameters": {"binary_data": chance.random() < 0.5}}]
    if chance.random() < 0.3:
        message["id"] = "an id"
    if chance.random() < 0.4:
        holder = chance.choice((message, entry, entry, entry))
        holder[chance.choice(tuple(holder))] = chance.choice(_ODD)
    head = orjson.dumps(message)
    return head + tail, {HEADER_LENGTH.encode(): b"%d" % len(head)} if tail else {}


def _mutated(body: bytes, chance: random.Random) -> bytes:
    """One change: bits, a piece gone, doubled, moved or put in, a number for another, the end cut off."""
    if not body:
        return chance.randbytes(3)
    at = chance.randrange(len(body))
    end = min(len(body), at + chance.randint(1, 8))
    kind = chance.randrange(7)
    if kind == 0:
        return body[:at] + bytes([body[at] ^ 1 << chance.randrange(8)]) + body[at + 1 :]
    if kind == 1:
        return body[:at] + body[end:]
    if kind == 2:
        return body[:end] + body[at:]
    if kind == 3:
        return body[:at] + chance.randbytes(end - at) + body[at:]
    if kind == 4:
        digits = [n for n, byte in enumerate(body) if 48 <= byte <= 57]
        where = chance.choice(digits) if digits else at
        return body[:where] + chance.choice(_NUMBERS) + body[where + 1 :]
    if kind == 5:
        return body[:at]
    there = chance.randrange(len(body))
    return body[:there] + body[at:end] + body[there:]


async def _answer(ingress: Ingress, sent: Sent) -> tuple[int, bytes]:
    """Status and body of the answer; 0 for none."""
    parts: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": sent.body, "more_body": False}

    async def send(message: Any) -> None:
        parts.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v2/models/m/infer",
        "headers": [(b"latency-budget-ms", b"400"), *sent.headers.items()],
        "query_string": b"",
    }
    await ingress(scope, receive, send)
    if len(parts) != 2:
        return 0, b""
    return parts[0]["status"], parts[1]["body"]


def try_out(count: int, seed: int, look_at: Sequence[int] = ()) -> Found:
    """Send ``count`` bodies one after the other to one ingress, on a virtual clock.

    There a request that waits for ever is an error at once. Memory is looked at after ``look_at`` bodies;
    it is traced from the first of them on, because tracing takes its time.
    """
    found = Found()

    async def play() -> None:
        async with serving() as served:
            for each in bodies(count, seed):
                if each.number in look_at:
                    found.memory_bytes.append(_traced())
                status, body = await _answer(served.ingress, each)
                found.statuses[status] += 1
                if status == 0 or status >= 500 or (status >= 400 and not _is_problem(status, body)):
                    found.harmful.append((each, status))
                served.replica.calls.clear()
                # A server's metrics take these out every few seconds.
                served.recorder.latencies.clear()
                served.recorder.batches.clear()
            if look_at:
                found.memory_bytes.append(_traced())

    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(play())
    finally:
        tracemalloc.stop()
    return found


def try_out_alone(count: int, seed: int, look_at: Sequence[int]) -> Found:
    """:func:`try_out` in a process of its own, where nobody else's threads and caches move the memory."""
    command = [sys.executable, "-m", __name__, *map(str, (count, seed, *look_at))]
    ran = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300)
    told = orjson.loads(ran.stdout)
    harmful: dict[int, int] = dict(told["harmful"])
    made = bodies(count, seed) if harmful else ()
    return Found(
        statuses=Counter({int(status): times for status, times in told["statuses"].items()}),
        harmful=[(each, harmful[each.number]) for each in made if each.number in harmful],
        memory_bytes=told["memory_bytes"],
    )


def _traced() -> int:
    if not tracemalloc.is_tracing():
        tracemalloc.start()
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _is_problem(status: int, body: bytes) -> bool:
    told = orjson.loads(body)
    return told["status"] == status and bool(told["detail"]) and "Traceback" not in told["detail"]


def _main(count: int, seed: int, *look_at: int) -> None:
    found = try_out(count, seed, look_at)
    told = {
        "statuses": {str(status): times for status, times in found.statuses.items()},
        "harmful": [(sent.number, status) for sent, status in found.harmful],
        "memory_bytes": found.memory_bytes,
    }
    sys.stdout.buffer.write(orjson.dumps(told))


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
