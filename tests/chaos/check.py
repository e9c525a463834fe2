"""What a run's history must satisfy, from the logs of submitters and workers and the queue's last word."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizers.tensors import unpack
from tests.chaos.parts import HANG, POISON
from workers.queue.job import JobState, JobStatus

#: Claims within this of each other have no order that a log could tell.
CLOCK_GRAIN_MS = 3


@dataclass(frozen=True)
class Verdict:
    """Counts of a run. ``lost``, ``doubled``, ``wrong``, ``out_of_order`` and ``blamed`` must be 0."""

    accepted: int
    done: int
    late: int
    failed_by_poison: int
    expired: int
    hung_and_given_up: int
    lost: int
    doubled: int
    wrong: int
    blamed: int
    out_of_order: int

    @property
    def good(self) -> bool:
        return not (self.lost or self.doubled or self.wrong or self.blamed or self.out_of_order)


def judge(
    accepted: Sequence[Mapping[str, Any]],
    statuses: Mapping[str, JobStatus | None],
    worker_events: Iterable[Mapping[str, Any]],
    total_done: int,
) -> Verdict:
    """``total_done`` is the queue's own count of jobs that ended as done."""
    events = list(worker_events)
    ended = [(a, statuses.get(a["id"])) for a in accepted]
    states = [s.state for _, s in ended if s is not None]
    done = [(a, s) for a, s in ended if s is not None and s.state is JobState.DONE]
    failed = [(a, s) for a, s in ended if s is not None and s.state is JobState.FAILED]
    dead = [a for a, s in ended if s is not None and s.state is JobState.DEAD]
    return Verdict(
        accepted=len(accepted),
        done=len(done),
        late=sum(s.met is False for _, s in done),
        failed_by_poison=sum(a["kind"] == POISON for a, _ in failed),
        expired=states.count(JobState.EXPIRED),
        hung_and_given_up=sum(a["kind"] == HANG for a in dead),
        lost=sum(s is None or not s.state.terminal for _, s in ended),
        doubled=_doubled(events) + max(0, total_done - len(done)),
        wrong=sum(not _right(a, s) for a, s in done) + sum(_early(s) for _, s in ended),
        blamed=sum(a["kind"] != POISON for a, _ in failed) + sum(a["kind"] != HANG for a in dead),
        out_of_order=_out_of_order(accepted, statuses, events),
    )


def _right(accepted: Mapping[str, Any], status: JobStatus) -> bool:
    """A done job has its own row's result, and harmed nobody."""
    if status.result is None or accepted["kind"]:
        return False
    return bool(np.all(unpack(status.result)[0]["y"] == 2 * accepted["value"]))


def _early(status: JobStatus | None) -> bool:
    """Expired although it was neither late nor hopeless: more than a second before its deadline."""
    if status is None or status.state is not JobState.EXPIRED or status.finished_ms is None:
        return False
    return status.finished_ms < status.deadline_ms - 1000


def _doubled(events: Sequence[Mapping[str, Any]]) -> int:
    """Jobs for which two different claims were both told that their result won."""
    winners: dict[str, set[str]] = defaultdict(set)
    for event in events:
        if event["kind"] == "done":
            for id, token in event["jobs"]:
                winners[id].add(token)
    return sum(len(tokens) > 1 for tokens in winners.values())


def _out_of_order(
    accepted: Sequence[Mapping[str, Any]],
    statuses: Mapping[str, JobStatus | None],
    events: Sequence[Mapping[str, Any]],
) -> int:
    """Claims that passed over a job of an earlier deadline that was waiting then.

    Only first waits count, of jobs that never lost a lease: for others no log knows when they came back.
    """
    claims = sorted((e for e in events if e["kind"] == "claim"), key=lambda e: int(e["at_ms"]))
    first_claim: dict[str, int] = {}
    for claim in claims:
        for id, _, _ in claim["jobs"]:
            first_claim.setdefault(id, int(claim["at_ms"]))
    waits = []
    for job in accepted:
        status = statuses.get(job["id"])
        if status is None or status.lost or job["id"] not in first_claim:
            continue
        waits.append((status.submitted_ms, first_claim[job["id"]], status.deadline_ms))
    waits.sort()
    starts = [w[0] for w in waits]
    wrong = 0
    longest_ms = max((end - start for start, end, _ in waits), default=0)
    for claim in claims:
        at_ms, last_deadline = int(claim["at_ms"]), max(deadline for _, deadline, _ in claim["jobs"])
        low = bisect_right(starts, at_ms - longest_ms - CLOCK_GRAIN_MS)
        high = bisect_right(starts, at_ms - CLOCK_GRAIN_MS)
        wrong += any(
            end > at_ms + CLOCK_GRAIN_MS and at_ms < deadline < last_deadline
            for _, end, deadline in waits[low:high]
        )
    return wrong
