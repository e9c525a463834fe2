"""Work in steps on an event loop, where everybody else's turn comes between two steps."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from router.ingress.codec.steps import Steps

T = TypeVar("T")


class Turns:
    """Runs the steps of large requests, those of one after those of the other.

    On the loop and not in a thread: parsing holds the interpreter, so a thread would take turns with the loop
    at the interpreter's own pace of 5 ms, each time the loop comes back from a system call.
    """

    def __init__(self) -> None:
        self._one = asyncio.Lock()

    async def run(self, steps: Steps[T]) -> T:
        """The result of ``steps``; whatever they raise."""
        try:
            next(steps)  # most requests are done in one
            async with self._one:
                while True:
                    await asyncio.sleep(0)
                    next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
