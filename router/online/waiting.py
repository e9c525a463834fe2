"""A request that waits for its batch, the batch that is on its way, and the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from optimizers.tensors import Tensors, split, unpack
from router.scheduling.delivery import BatchDelivery, RunTimes

Form = tuple[tuple[int, ...], ...]


class OnlineAnswer(NamedTuple):
    """One request's outputs, and how it got them. Times in ms; ``batch_rows`` of the largest batch."""

    outputs: Tensors
    variant: str
    queued_ms: float
    run_ms: float
    batch_rows: int


class WaitingRequest:
    """``rows`` is what it costs, in rows of usual size; ``own_rows`` how many it has.

    ``form``: the shapes of its rows where those are open. Only requests of one form share a batch.
    """

    __slots__ = (
        "arrived_ms",
        "deadline_ms",
        "droppable",
        "form",
        "future",
        "inputs",
        "own_rows",
        "predicted_ms",
        "rows",
    )

    def __init__(
        self,
        inputs: Tensors,
        rows: int,
        own_rows: int,
        deadline_ms: float,
        arrived_ms: float,
        droppable: bool,
        predicted_ms: float,
        form: Form,
    ) -> None:
        self.inputs, self.rows, self.own_rows = inputs, rows, own_rows
        self.deadline_ms, self.arrived_ms = deadline_ms, arrived_ms
        self.droppable, self.predicted_ms, self.form = droppable, predicted_ms, form
        self.future: asyncio.Future[OnlineAnswer] = asyncio.get_running_loop().create_future()

    @property
    def left(self) -> bool:
        return self.future.done()


class SentBatch:
    """One batch at its replicas: its message, its delivery, and the timer for when it is overdue."""

    __slots__ = ("delivery", "message", "timer")

    def __init__(self, delivery: BatchDelivery[WaitingRequest], message: bytes) -> None:
        self.delivery, self.message = delivery, message
        self.timer: asyncio.TimerHandle | None = None


class BatchReply(NamedTuple):
    """What a replica answered: the outputs for each item by its place in the batch, or why there are none."""

    times: RunTimes
    outputs: Mapping[int, Tensors]
    bad: Mapping[int, str]

    @classmethod
    def read(cls, message: bytes, items: Sequence[WaitingRequest]) -> BatchReply:
        """Raises whatever is wrong with the message."""
        outputs, meta = unpack(message)
        ran_ms = float(meta["ran_ms"]) if "ran_ms" in meta else None
        times = RunTimes(float(meta["run_ms"]), float(meta["wait_ms"]), ran_ms)
        if "bad" not in meta:
            parts = split(outputs, [item.own_rows for item in items])
            return cls(times, dict(enumerate(parts)), {})
        bad = {int(place): str(reason) for place, reason in meta["bad"]}
        good = [place for place in range(len(items)) if place not in bad]
        answers = [unpack(answer)[0] for answer in outputs["answers"]]
        return cls(times, dict(zip(good, answers, strict=True)), bad)
