"""The interactive half of the demo's load: open-loop arrivals of single images with a 50 ms budget."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from router import AsyncClient
from router.demo.reference import Reference
from router.sdk.errors import DeadlineExceeded, HybridRouterError, Rejected

BUDGET_MS = 50.0


@dataclass(frozen=True, slots=True)
class InteractiveRecord:
    """One interactive request. ``latency_ms`` counts from the moment it was meant to be sent."""

    at_s: float
    latency_ms: float
    outcome: str  # done | rejected | expired | failed
    variant: str = ""
    predicted_ms: float | None = None
    right: bool = False
    true_to_variant: bool = True
    error: str = ""

    @property
    def met(self) -> bool:
        return self.outcome == "done" and self.latency_ms <= BUDGET_MS


async def send(
    url: str, model: str, arrivals: Sequence[float], reference: Reference, records: list[InteractiveRecord]
) -> None:
    """Send each request at its time, whether or not earlier ones are answered; add a record for each."""
    async with AsyncClient(url) as client:
        await client.model(model)  # its description is fetched once; no request's budget should pay for it
        start = time.perf_counter()
        running: set[asyncio.Task[None]] = set()
        for number, at_s in enumerate(arrivals):
            delay = start + at_s - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            task = asyncio.create_task(
                _one(client, model, number % len(reference.images), at_s, start, reference, records)
            )
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)


async def _one(
    client: AsyncClient,
    model: str,
    index: int,
    at_s: float,
    start: float,
    reference: Reference,
    records: list[InteractiveRecord],
) -> None:
    image = reference.images[index : index + 1]
    try:
        result = await client.infer(model, image, budget=f"{BUDGET_MS:g}ms")
    except Rejected as error:
        outcome, text = "rejected", str(error)
    except DeadlineExceeded as error:
        outcome, text = "expired", str(error)
    except HybridRouterError as error:
        outcome, text = "failed", str(error)
    else:
        latency_ms = (time.perf_counter() - start - at_s) * 1e3
        label = result.outputs["label"]
        rows = np.array([index])
        records.append(
            InteractiveRecord(
                at_s,
                latency_ms,
                "done",
                result.variant or "",
                result.predicted_ms,
                bool(label[0] == reference.truth[index]),
                bool(reference.matches(result.variant, rows, label, result.outputs["scores"])[0]),
            )
        )
        return
    records.append(InteractiveRecord(at_s, (time.perf_counter() - start - at_s) * 1e3, outcome, error=text))
