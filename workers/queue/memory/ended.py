"""The ended jobs of the in-memory queue, until they are to be forgotten."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator

from workers.queue.job import JobState
from workers.queue.memory.record import JobRecord
from workers.queue.settings import QueueSettings

#: After every id, in a comparison.
_LAST = "\U0010ffff"


class EndedJobs:
    """Dead letters by the time of their end and by id, all others in the order in which they ended."""

    def __init__(self, settings: QueueSettings) -> None:
        self.settings = settings
        self._others: deque[JobRecord] = deque()
        self._dead: list[tuple[int, str]] = []

    @property
    def dead_letters(self) -> int:
        return len(self._dead)

    def add(self, record: JobRecord) -> None:
        if record.state is JobState.DEAD:
            insort(self._dead, _death_key(record))
        else:
            self._others.append(record)

    def revive(self, record: JobRecord) -> None:
        """A dead letter is queued again or dropped."""
        del self._dead[bisect_left(self._dead, _death_key(record))]

    def newest_dead(self, limit: int) -> list[str]:
        """Ids of dead letters, newest first."""
        return [id for _, id in self._dead[::-1][:limit]]

    def take_old(self, now_ms: int) -> Iterator[str]:
        """Take out the ids of those that were kept long enough."""
        settings = self.settings
        while self._others and (self._others[0].finished_ms or 0) + settings.keep_ms <= now_ms:
            yield self._others.popleft().job.id
        if self._dead and self._dead[0][0] + settings.keep_dead_ms <= now_ms:
            yield from self._take_first(bisect_left(self._dead, (now_ms - settings.keep_dead_ms, _LAST)))

    def take_excess(self) -> Iterator[str]:
        """Take out the ids of the oldest dead letters beyond the bound."""
        yield from self._take_first(max(0, len(self._dead) - self.settings.max_dead_letters))

    def _take_first(self, count: int) -> list[str]:
        first = [id for _, id in self._dead[:count]]
        del self._dead[:count]
        return first


def _death_key(record: JobRecord) -> tuple[int, str]:
    return record.finished_ms or 0, record.job.id
