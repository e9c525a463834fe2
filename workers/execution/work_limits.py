"""Whether a model still works or hangs: the time that one piece of work took, against what its size explains.

Elapsed time alone cannot tell. A thread of class ``SCHED_IDLE`` may wait minutes for a processor, and nothing
is wrong. So the time of a piece of work is split in three: *on CPU*, *runnable* (it waits for a processor,
not its fault) and *blocked* (it waits for a lock, a device or a file). The first and the last have
a limit each. :mod:`workers.execution.work_watch` reads the times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Work may take so many times what the profile predicts for its rows: rows differ, and machines slow down.
FACTOR = 20.0
#: ... and never less than this, so that a page fault or a slow disk is not taken for a hang.
FLOOR_MS = 30_000.0


@dataclass(frozen=True, slots=True)
class WorkLimit:
    """The most time that one piece of work may be on CPU, and the most that it may be blocked."""

    on_cpu_ms: float
    blocked_ms: float


#: Loading has no profile: weights are read from disk or network, compiled and tried.
LOAD_LIMIT = WorkLimit(on_cpu_ms=600_000.0, blocked_ms=300_000.0)


def limit_for(predicted_ms: float, *, factor: float = FACTOR, floor_ms: float = FLOOR_MS) -> WorkLimit:
    """The limit of a batch whose profile predicts ``predicted_ms``."""
    limit_ms = max(floor_ms, factor * predicted_ms)
    return WorkLimit(limit_ms, limit_ms)


@dataclass(frozen=True, slots=True)
class ThreadTimes:
    """One thread at one moment: its time on CPU and in the run queue since it started, and whether it is
    runnable now. The kernel adds the time in the run queue when it ends: a thread that starves shows none."""

    on_cpu_ms: float
    runnable_ms: float
    is_runnable: bool


@dataclass(frozen=True, slots=True)
class Spent:
    """What a piece of work has taken so far."""

    on_cpu_ms: float = 0.0
    blocked_ms: float = 0.0


Threads = Mapping[int, ThreadTimes]


def spend(spent: Spent, before: Threads, after: Threads, elapsed_ms: float) -> Spent:
    """``spent`` after another ``elapsed_ms``, seen from the times of the threads that do the work.

    A model's thread waits while a pool of its runtime computes, so it is blocked only as long as none of the
    threads is on CPU or runnable. Time on CPU is that of the busiest thread: a profile is in elapsed time,
    which no thread of the work exceeds.
    """
    busiest_ms = active_ms = 0.0
    for id, now in after.items():
        was = before.get(id)
        on_cpu_ms = now.on_cpu_ms - (was.on_cpu_ms if was else 0.0)
        runnable_ms = now.runnable_ms - (was.runnable_ms if was else 0.0)
        busiest_ms = max(busiest_ms, min(on_cpu_ms, elapsed_ms))
        active_ms += elapsed_ms if now.is_runnable else on_cpu_ms + runnable_ms
    return Spent(spent.on_cpu_ms + busiest_ms, spent.blocked_ms + max(0.0, elapsed_ms - active_ms))


def exceeded(spent: Spent, limit: WorkLimit) -> str | None:
    """Which limit is exceeded, in words; None while the work's size explains its time."""
    if spent.on_cpu_ms > limit.on_cpu_ms:
        return f"{_seconds(spent.on_cpu_ms)} on CPU, where {_seconds(limit.on_cpu_ms)} is the most"
    if spent.blocked_ms > limit.blocked_ms:
        return f"{_seconds(spent.blocked_ms)} blocked, where {_seconds(limit.blocked_ms)} is the most"
    return None


def _seconds(ms: float) -> str:
    return f"{ms / 1000:.4g} s"
