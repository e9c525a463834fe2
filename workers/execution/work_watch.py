"""Watches a model's thread from outside: what runs there, and whether it works or hangs.

:mod:`workers.execution.work_limits` decides; this reads the threads' times from ``/proc``, which the watched
thread need not help with.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from workers.execution.work_limits import Spent, ThreadTimes, WorkLimit, exceeded, spend

#: Between two looks further apart than this, the watcher itself did not run: the process was stopped or the
#: machine asleep. The rest of that time tells nothing about the work.
_LONGEST_GAP_MS = 5_000.0
_FOLDER = "/proc/self/task"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
#: Places in ``/proc/self/task/<id>/stat``, counted from the one after the name.
_STATE, _USER_TICKS, _SYSTEM_TICKS, _POLICY = 0, 11, 12, 38


@dataclass(slots=True)
class _Piece:
    """One piece of work: what it is, its limit, and the thread that began it."""

    what: str
    limit: WorkLimit
    thread: int


class WorkWatch:
    """Each piece of work in the model's thread runs in ``with watch.work(what, limit):``; another thread
    calls ``look`` about once a second.

    Make it before the model is loaded: the threads that a runtime starts for itself are known by being
    younger. Threads of another scheduling class than the model's thread are not counted.
    """

    def __init__(
        self,
        *,
        read: Callable[[set[int], int], dict[int, ThreadTimes]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read or read_threads
        self._clock = clock
        self._older = _thread_ids()
        self._piece: _Piece | None = None
        self._last_piece: _Piece | None = None
        self._spent = Spent()
        self._threads: dict[int, ThreadTimes] = {}
        self._looked_at = 0.0

    @contextlib.contextmanager
    def work(self, what: str, limit: WorkLimit) -> Iterator[None]:
        """One piece of work in the calling thread: ``what`` says which, for the message. They do not nest."""
        self._piece = _Piece(what, limit, threading.get_native_id())
        try:
            yield
        finally:
            self._piece = None

    def look(self) -> str | None:
        """Why the current work counts as hung; None while there is none, or its size explains its time. The
        time before the first look at a piece of work does not count."""
        piece, now = self._piece, self._clock()
        if piece is None:
            self._last_piece = None
            return None
        threads = self._read(self._older, piece.thread)
        if piece is self._last_piece:
            elapsed_ms = min((now - self._looked_at) * 1e3, _LONGEST_GAP_MS)
            if threads:  # else the times are unknown, which is no evidence of a hang
                self._spent = spend(self._spent, self._threads, threads, elapsed_ms)
        else:
            self._last_piece, self._spent = piece, Spent()
        self._threads, self._looked_at = threads, now
        problem = exceeded(self._spent, piece.limit)
        return f"{piece.what} hangs: {problem}" if problem else None


def read_threads(older: set[int], main: int) -> dict[int, ThreadTimes]:
    """The times of thread ``main`` of this process and of those that are not in ``older`` and have its
    scheduling class; empty where they cannot be read."""
    stats = {id: _read(id) for id in {main, *(_thread_ids() - older)}}
    own = stats.get(main)
    if own is None:
        return {}
    return {id: one[1] for id, one in stats.items() if one is not None and one[0] == own[0]}


def _read(id: int) -> tuple[int, ThreadTimes] | None:
    """A thread's scheduling class and times; None if it is gone."""
    try:
        with open(f"{_FOLDER}/{id}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        on_cpu_ms = (int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])) * 1e3 / _TICKS_PER_S
    except (OSError, ValueError, IndexError):
        return None
    runnable_ms = 0.0
    try:
        with open(f"{_FOLDER}/{id}/schedstat", encoding="utf-8") as file:
            on_cpu_ms, runnable_ms = (int(ns) / 1e6 for ns in file.read().split()[:2])
    except (OSError, ValueError):
        pass  # a kernel without these statistics
    return int(fields[_POLICY]), ThreadTimes(on_cpu_ms, runnable_ms, fields[_STATE] == "R")


def _thread_ids() -> set[int]:
    try:
        return {int(name) for name in os.listdir(_FOLDER)}
    except (OSError, ValueError):
        return set()
