"""What a client does not share with a forked child: each process makes its own connections and locks.

Two processes that write to one socket get each other's answers, and a lock that another thread held during
the fork is never released in the child.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_generation = 0


def _count_fork() -> None:
    global _generation
    _generation += 1


if hasattr(os, "register_at_fork"):  # where it is not, nothing forks
    os.register_at_fork(after_in_child=_count_fork)


def generation() -> int:
    """How many forks lie between this process and the one that imported the SDK."""
    return _generation


class PerProcess(Generic[T]):
    """A value that ``make`` gives, made anew by each process that asks for it.

    ``leave`` is handed the parent's value in a child before it is replaced. It must not reach the parent:
    closing a descriptor is fine, a word to the peer is not.
    """

    def __init__(self, make: Callable[[], T], leave: Callable[[T], None] | None = None) -> None:
        self._make, self._leave = make, leave
        self._owned = (_generation, make())

    def get(self) -> T:
        """This process's value. Threads that ask for the first one at once may each get one of their own."""
        owned = self._owned
        if owned[0] != _generation:
            if self._leave is not None:
                self._leave(owned[1])
            owned = self._owned = (_generation, self._make())
        return owned[1]
