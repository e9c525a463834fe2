"""Which queued jobs should run on an online replica instead, because the queue will be too late for them.

Pure: `router.service.rescuer` carries a `RescueRound` out with a real queue, `router.simulate.rescued` with a
simulated one. A job is rescued when it is predicted to miss its deadline in the queue and to make it online,
on the most accurate variant that is no worse than the one the queue would have used. Interactive requests
come first: nothing is rescued while any of them waits, and rescues take no more than the policy's share of
the online time.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from router.scheduling.prediction import BatchLoad, OnlineLoad, batch_ms, online_ms
from router.scheduling.tuning import (
    RESCUE_AHEAD_MS,
    RESCUE_HANDOVER_MS,
    RESCUE_LAST_CALL_MS,
    RESCUE_LEASE_BEYOND_MS,
    RESCUE_MAX_SAVED_MS,
    RESCUES_REMEMBERED,
)
from workers.queue.contract import QueueStats, WaitingJob
from workers.queue.job import Lease


class Promotion(NamedTuple):
    """Run this job online, on this variant; ``run_ms`` of online time are predicted for it."""

    id: str
    variant: str
    rows: int
    run_ms: float


class Room(NamedTuple):
    """What may be spent on rescues now: online time in ms, and rows beside the ``rows_in_flight``."""

    run_ms: float
    rows: int
    rows_in_flight: int = 0


@dataclass(frozen=True, slots=True)
class QueueView:
    """The queue as a rescue sees it: ``heads`` in order of deadline, ``held_rows`` with the workers."""

    heads: Iterable[WaitingJob]
    held_rows: int
    now_ms: int


class Quota:
    """A share of the replicas' time. It may be overdrawn by the jobs of one look, and is then waited for."""

    def __init__(self, share: float, replicas: int, max_batch: int) -> None:
        self._seen_ms: float | None = None
        self._rows = 0
        self._credit_ms = math.inf
        self.configure(share, replicas, max_batch)

    def configure(self, share: float, replicas: int, max_batch: int) -> None:
        """Another share from now on; what was saved of the last one stays, up to what may be saved."""
        self._per_ms = share * replicas
        self._credit_ms = min(self._credit_ms, self._per_ms * RESCUE_MAX_SAVED_MS)
        self._most_rows = max(1, int(self._per_ms * max_batch))

    def room(self, now_ms: float) -> Room:
        if self._seen_ms is not None:
            earned_ms = self._per_ms * (now_ms - self._seen_ms)
            self._credit_ms = min(self._per_ms * RESCUE_MAX_SAVED_MS, self._credit_ms + earned_ms)
        self._seen_ms = now_ms
        return Room(self._credit_ms, self._most_rows - self._rows, self._rows)

    def spend(self, promotion: Promotion) -> None:
        self._credit_ms -= promotion.run_ms
        self._rows += promotion.rows

    def completed(self, promotion: Promotion) -> None:
        """It is back: its rows are no longer in flight. The time is spent."""
        self._rows -= promotion.rows


def worth_a_look(slack_ms: float, held_rows: int, batch: BatchLoad, online: OnlineLoad) -> bool:
    """Whether any job may be due for rescue, where the most urgent has ``slack_ms`` left.

    No job of a queue that is done before its earliest deadline misses its own.
    """
    rows = max(1, batch.waiting_rows)
    slowest_ms = max(online_ms(online, variant, rows) for variant in online.variants)
    return slack_ms <= max(_queue_ms(batch, held_rows, rows), slowest_ms) + RESCUE_LAST_CALL_MS


def choose(
    queued: QueueView, batch: BatchLoad, online: OnlineLoad, room: Room, tried: Container[str] = ()
) -> list[Promotion]:
    """The jobs to run online now, most urgent first; those in ``tried`` had their chance."""
    if online.full or online.waiting_ms > 0.0:
        return []
    chosen: list[Promotion] = []
    ahead, taken_ms, taken_rows = queued.held_rows, 0.0, 0
    for job in queued.heads:
        if taken_ms >= room.run_ms:
            break
        slack_ms = float(job.deadline_ms - queued.now_ms)
        found = None if job.id in tried else _in_time(job, slack_ms, batch, online, taken_ms)
        fits = taken_rows + job.rows <= room.rows or not (taken_rows or room.rows_in_flight)
        if found and fits and _misses(slack_ms, found.finish_ms, _queue_ms(batch, ahead, job.rows), queued):
            chosen.append(Promotion(job.id, found.variant, job.rows, found.run_ms))
            taken_ms, taken_rows = taken_ms + found.run_ms, taken_rows + job.rows
        else:
            ahead += job.rows
    return chosen


class _Found(NamedTuple):
    variant: str
    run_ms: float
    finish_ms: float


def _in_time(
    job: WaitingJob, slack_ms: float, batch: BatchLoad, online: OnlineLoad, ahead_ms: float
) -> _Found | None:
    """The most accurate variant that may run the job and is predicted to do it in time."""
    for name, variant in online.variants.items():
        allowed = variant.quality_drop <= batch.variant.quality_drop if job.variant is None else False
        if not allowed and name != job.variant:
            continue
        finish_ms = online_ms(online, name, job.rows) + ahead_ms / online.replicas + RESCUE_HANDOVER_MS
        if finish_ms <= slack_ms:
            return _Found(name, variant.profile.predict_ms(job.rows), finish_ms)
    return None


def _misses(slack_ms: float, online_finish_ms: float, queue_ms: float, queued: QueueView) -> bool:
    nobody_drains = queued.held_rows == 0
    margin_ms = RESCUE_LAST_CALL_MS if nobody_drains else RESCUE_AHEAD_MS
    return queue_ms + RESCUE_AHEAD_MS >= slack_ms or online_finish_ms + margin_ms >= slack_ms


def _queue_ms(batch: BatchLoad, ahead: int, rows: int) -> float:
    return batch_ms(replace(batch, waiting_rows=ahead), rows)


class Rescue(NamedTuple):
    """One job that is leased to be run online by ``deadline_ms``, on the clock of the round."""

    lease: Lease
    promotion: Promotion
    deadline_ms: float


class Rescues:
    """One router's rescues of one model: its quota, and which jobs had their chance already."""

    def __init__(self, share: float, replicas: int, max_batch: int) -> None:
        self.quota = Quota(share, replicas, max_batch)
        self.tried: dict[str, None] = {}

    def begin(self, now_ms: float) -> RescueRound | None:
        """A look at the queue; None where nothing may be spent on rescues now."""
        room = self.quota.room(now_ms)
        return RescueRound(self, room) if room.run_ms > 0.0 and room.rows > 0 else None

    def started(self, promotion: Promotion) -> None:
        self.tried[promotion.id] = None
        self.quota.spend(promotion)
        while len(self.tried) > RESCUES_REMEMBERED:
            del self.tried[next(iter(self.tried))]

    def ended(self, rescue: Rescue) -> None:
        """It was answered, or goes back to the queue."""
        self.quota.completed(rescue.promotion)


class RescueRound:
    """One look at the queue, as a state machine without I/O.

    Its caller reads the statistics and asks `is_due`, peeks at `RESCUE_HEADS` jobs and lets it `choose`,
    leases those for ``lease_ms``, and tells it of each that is `leased`.
    """

    def __init__(self, rescues: Rescues, room: Room) -> None:
        self._rescues, self._room = rescues, room
        self._now_ms = 0.0
        self._held_rows = self._queue_now_ms = 0
        self._chosen: dict[str, Promotion] = {}
        self._slack_ms: dict[str, int] = {}

    def is_due(self, stats: QueueStats, batch: BatchLoad, online: OnlineLoad, now_ms: float) -> bool:
        """Whether to peek at the queue, by statistics that were read at ``now_ms``."""
        if stats.earliest_deadline_ms is None:
            return False
        self._now_ms, self._queue_now_ms = now_ms, stats.now_ms
        self._held_rows = max(0, stats.rows - stats.waiting_rows - self._room.rows_in_flight)
        slack_ms = float(stats.earliest_deadline_ms - stats.now_ms)
        return worth_a_look(slack_ms, self._held_rows, batch, online)

    def choose(self, heads: Sequence[WaitingJob], batch: BatchLoad, online: OnlineLoad) -> list[str]:
        """The ids of the jobs to lease, most urgent first."""
        view = QueueView(heads, self._held_rows, self._queue_now_ms)
        chosen = choose(view, batch, online, self._room, self._rescues.tried)
        self._chosen = {promotion.id: promotion for promotion in chosen}
        self._slack_ms = {job.id: job.deadline_ms - self._queue_now_ms for job in heads}
        return list(self._chosen)

    @property
    def lease_ms(self) -> int:
        """How long the chosen jobs are leased."""
        return max(self._slack_ms[id] for id in self._chosen) + RESCUE_LEASE_BEYOND_MS

    def leased(self, lease: Lease) -> Rescue:
        """One of them is leased: from now on it is spent, and not rescued a second time."""
        promotion = self._chosen[lease.id]
        self._rescues.started(promotion)
        return Rescue(lease, promotion, self._now_ms + self._slack_ms[lease.id])
