"""The callers of this process that wait for jobs to end or for work to claim: one event each."""

from __future__ import annotations

import contextlib
from asyncio import Event
from collections.abc import Iterable, Iterator


class Waiters:
    """An event only means "look again": its waiter may find nothing new."""

    def __init__(self) -> None:
        self._by_id: dict[str, set[Event]] = {}
        self._for_work: set[Event] = set()

    @contextlib.contextmanager
    def ended(self, ids: Iterable[str]) -> Iterator[Event]:
        """An event that is set when one of the jobs has ended."""
        event, ids = Event(), tuple(ids)
        for id in ids:
            self._by_id.setdefault(id, set()).add(event)
        try:
            yield event
        finally:
            for id in dict.fromkeys(ids):
                self._by_id[id].discard(event)
                if not self._by_id[id]:
                    del self._by_id[id]

    @contextlib.contextmanager
    def work(self) -> Iterator[Event]:
        """An event that is set when there may be work."""
        event = Event()
        self._for_work.add(event)
        try:
            yield event
        finally:
            self._for_work.discard(event)

    def wake_for_end(self, id: str) -> None:
        for event in self._by_id.get(id, ()):
            event.set()

    def wake_for_work(self) -> None:
        for event in self._for_work:
            event.set()

    def wake_all(self) -> None:
        self.wake_for_work()
        for id in self._by_id:
            self.wake_for_end(id)
