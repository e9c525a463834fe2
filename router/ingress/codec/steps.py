"""Work in steps, so that a large body does not hold an event loop: a generator that yields between them.

Pure: nobody waits here. `finish` runs all steps at once; `router.ingress.turns` lets others run in
between.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
#: Work that yields after each step and returns its result.
Steps = Generator[None, None, T]

#: Bytes of one step: each takes about half a millisecond, whatever is done with them.
STEP_BYTES = 64 << 10
#: Elements of one step, where they are Python's own objects.
STEP_ITEMS = 8 << 10


def finish(steps: Steps[T]) -> T:
    """The result of all steps, one after the other."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
