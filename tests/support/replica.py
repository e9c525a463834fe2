"""A replica in memory: runs packed batches by numpy, one at a time, and takes its time in virtual time."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from optimizers.profile import LatencyProfile, ProfilePoint
from optimizers.tensors import Tensors, pack, rows_of, split, unpack
from router.policy.facts import MeasuredVariant
from tests.support.virtual_time import now_ms

#: What a batch takes: 10 ms, and 1 ms for each row.
FIXED_MS, ROW_MS = 10.0, 1.0


def run_ms(rows: int) -> float:
    return FIXED_MS + ROW_MS * rows


def variant(name: str = "v", drop: float = 0.0, faster: float = 1.0) -> MeasuredVariant:
    """A variant whose profile is exactly what `Replica` does, or that by a factor."""
    points = tuple(ProfilePoint(n, run_ms(n) / faster, run_ms(n) / faster) for n in (1, 1_000))
    return MeasuredVariant(name, LatencyProfile(points), drop)


def batch(*values: float) -> Tensors:
    """One request: a row for each value."""
    return {"x": np.array(values, dtype=np.float32).reshape(-1, 1)}


@dataclass(slots=True)
class Sent:
    """One call that reached the replica."""

    variant: str
    values: list[float]
    at_ms: float


@dataclass
class Replica:
    """Doubles what it is given. ``faults`` are raised by the first calls, None for a call that works.

    ``hop_ms`` is the way there and back; ``hangs`` makes every call wait for ever; ``bad`` are values
    that make the model fail, and finding whose they are takes ``search_ms``.
    """

    faults: deque[BaseException | None] = field(default_factory=deque)
    hop_ms: float = 0.0
    hangs: bool = False
    bad: set[float] = field(default_factory=set)
    search_ms: float = 500.0
    calls: list[Sent] = field(default_factory=list)
    open_calls: int = 0
    most_open_calls: int = 0
    _free: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def send(self, name: str, message: bytes, replica: str = "") -> bytes:
        inputs, told = unpack(message)
        self.calls.append(Sent(name, inputs["x"].ravel().tolist(), now_ms()))
        self.open_calls += 1
        self.most_open_calls = max(self.most_open_calls, self.open_calls)
        try:
            return await self._run(inputs, told["rows"])
        finally:
            self.open_calls -= 1

    async def _run(self, inputs: Tensors, rows: list[int]) -> bytes:
        await asyncio.sleep(self.hop_ms / 2_000.0)
        fault = self.faults.popleft() if self.faults else None
        if fault is not None:
            raise fault
        if self.hangs:
            await asyncio.Event().wait()
        arrived = now_ms()
        async with self._free:
            started = now_ms()
            took_ms = run_ms(rows_of(inputs))
            await asyncio.sleep(took_ms / 1_000.0)
        await asyncio.sleep(self.hop_ms / 2_000.0)
        requests = split(inputs, rows)
        bad = [n for n, each in enumerate(requests) if self.bad & set(each["x"].ravel().tolist())]
        told = {"wait_ms": started - arrived, "run_ms": took_ms}
        if not bad:
            return pack({"y": inputs["x"] * 2}, told)
        await asyncio.sleep(self.search_ms / 1_000.0)
        good = [pack({"y": each["x"] * 2}) for n, each in enumerate(requests) if n not in bad]
        return pack(
            {"answers": np.array(good, object)},
            {**told, "bad": [(n, "ValueError: a bad value") for n in bad]},
        )

    @property
    def batches(self) -> list[list[float]]:
        """The values of each call, in order."""
        return [call.values for call in self.calls]
