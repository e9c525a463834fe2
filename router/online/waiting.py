"""A request that waits for its batch, the batch that is on its way, and the answer."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from optimizers.tensors import Tensors

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


class Away:
    """One batch on its way: ``open`` of its ``tries`` may still be answered."""

    __slots__ = ("items", "message", "open", "timer", "tries")

    def __init__(self, items: list[WaitingRequest], message: bytes) -> None:
        self.items, self.message = items, message
        self.tries = self.open = 1
        self.timer: asyncio.TimerHandle | None = None

    @property
    def told(self) -> bool:
        """Every caller has an answer, or is gone."""
        return all(item.future.done() for item in self.items)
