"""Which queued jobs run online: only the late ones, in time, and within the quota."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.scheduling.prediction import BatchLoad, OnlineLoad
from router.scheduling.rescue import Promotion, QueueView, Quota, Rescues, Room, choose, worth_a_look
from tests.support.replica import variant
from workers.queue.contract import QueueStats, WaitingJob
from workers.queue.job import Lease

NOW = 1_800_000_000_000
#: 10 ms and 1 ms a row, on either side; the queue drains 100 rows a second.
BATCH = BatchLoad(variant("v", drop=0.01), 1, 0, 100.0, 8)
ONLINE = OnlineLoad(
    {"best": variant("best"), "v": variant("v", drop=0.01), "fast": variant("fast", 0.1)}, 1, 0, 0
)
PLENTY = Room(1e9, 1_000_000)


def waiting(id: str, slack_ms: int, rows: int = 1, pinned: str | None = None) -> WaitingJob:
    return WaitingJob(id, NOW + slack_ms, rows, "", pinned)


def chosen(
    *jobs: WaitingJob, held: int = 1, online: OnlineLoad = ONLINE, room: Room = PLENTY, tried: str = ""
) -> str:
    found = choose(QueueView(jobs, held, NOW), BATCH, online, room, tried)
    return " ".join(f"{promotion.id}:{promotion.variant}" for promotion in found)


@pytest.mark.parametrize(
    ("slack_ms", "held", "taken"),
    [
        (5_000, 100, ""),  # the queue is at it in a second
        (1_100, 100, "a:best"),  # 100 rows ahead and its own: 1,021 ms, which is too close to wait and see
        (30, 100, "a:best"),
        (20, 100, ""),  # too late online too: 11 ms and the hand-over
        (-5, 100, ""),
    ],
)
def test_only_what_the_queue_misses_and_online_makes_is_taken(slack_ms: int, held: int, taken: str) -> None:
    assert chosen(waiting("a", slack_ms), held=held) == taken


def test_rows_ahead_count_and_those_that_are_rescued_are_no_longer_ahead() -> None:
    heads = [waiting("big", 900, rows=90), waiting("next", 1_000), waiting("last", 1_080)]
    assert chosen(*heads, held=1) == "big:best"
    # Where the big one cannot be taken, those behind it are late because of it.
    assert chosen(*heads, held=1, tried="big") == "next:best last:best"


def test_a_queue_that_nobody_drains_is_not_trusted_to_the_last_moment() -> None:
    assert chosen(waiting("a", 400), held=1) == ""
    assert chosen(waiting("a", 400), held=0) == "a:best"
    assert chosen(waiting("a", 3_600_000), held=0) == ""


@pytest.mark.parametrize("busy", [ONLINE._replace(waiting_ms=1.0), ONLINE._replace(full=True)])
def test_nothing_is_taken_while_online_requests_wait(busy: OnlineLoad) -> None:
    assert chosen(waiting("a", 50)) == "a:best"
    assert chosen(waiting("a", 50), online=busy) == ""


def test_the_variant_is_never_worse_than_the_queues_unless_it_is_asked_for() -> None:
    quick = replace(variant("v", 0.01), profile=variant(faster=5.0).profile)
    online = ONLINE._replace(
        variants={**ONLINE.variants, "v": quick, "fast": variant("fast", 0.1, faster=9.0)}
    )
    assert chosen(waiting("a", 22), online=online) == "a:best"
    assert chosen(waiting("a", 20), online=online) == "a:v"
    assert chosen(waiting("a", 12), online=online) == ""
    assert chosen(waiting("a", 12, pinned="fast"), online=online) == "a:fast"
    assert chosen(waiting("a", 50, pinned="elsewhere"), online=online) == ""


def test_the_work_of_earlier_rescues_delays_the_later_ones() -> None:
    heads = [waiting(str(i), 60) for i in range(9)]
    assert chosen(*heads) == "0:best 1:best 2:best 3:best"  # 11 ms each, and 10 for the hand-over


def test_the_rooms_rows_and_time_bound_what_is_taken() -> None:
    heads = [waiting("a", 150, rows=4), waiting("b", 150, rows=4), waiting("c", 150, rows=1)]
    assert chosen(*heads, room=Room(1e9, 5)) == "a:best c:best"
    assert chosen(*heads, room=Room(1.0, 100)) == "a:best"
    assert chosen(*heads, room=Room(0.0, 100)) == ""
    # One that is larger than the bound goes alone, or it would never go.
    assert chosen(*heads, room=Room(1e9, 2)) == "a:best"
    assert chosen(*heads, room=Room(1e9, 2, rows_in_flight=3)) == "c:best"


def test_a_quota_is_a_share_of_the_replicas_time_saved_up_for_a_while() -> None:
    quota = Quota(0.2, replicas=2, max_batch=10)
    assert quota.room(0.0) == Room(2_000.0, 4, 0)
    quota.spend(Promotion("a", "v", 3, 2_500.0))
    assert quota.room(1_000.0) == pytest.approx((-100.0, 1, 3))
    quota.completed(Promotion("a", "v", 3, 2_500.0))
    assert quota.room(1_500.0) == pytest.approx((100.0, 4, 0))
    assert quota.room(1e9).run_ms == 2_000.0


def test_a_queue_that_is_done_before_its_earliest_deadline_need_not_be_looked_at() -> None:
    assert not worth_a_look(60_000.0, 0, replace(BATCH, waiting_rows=1_000), ONLINE)
    assert worth_a_look(10_300.0, 0, replace(BATCH, waiting_rows=1_000), ONLINE)
    assert worth_a_look(100.0, 0, replace(BATCH, waiting_rows=1), ONLINE)


def stats(rows: int = 1, slack_ms: int | None = 400) -> QueueStats:
    """One job of one row waits; of ``rows`` in all the others are leased."""
    due_ms = None if slack_ms is None else NOW + slack_ms
    return QueueStats(NOW, rows, rows, 0, 1, 1, 0, rows - 1, 0, due_ms, 100.0, {})


def lease(id: str) -> Lease:
    return Lease(id, "token", b"", 1, NOW + 400, 0, "", None, NOW + 5_400, NOW)


def test_a_round_leases_what_it_chose_beyond_its_deadline_and_rescues_nothing_twice() -> None:
    rescues = Rescues(share=1.0, replicas=1, max_batch=8)
    look = rescues.begin(0.0)
    assert look and look.is_due(stats(), BATCH, ONLINE, now_ms=50.0)
    assert look.choose([waiting("a", 400)], BATCH, ONLINE) == ["a"]
    assert look.lease_ms == 400 + 5_000
    rescue = look.leased(lease("a"))
    assert (rescue.deadline_ms, rescue.promotion.variant) == (450.0, "best")
    again = rescues.begin(100.0)
    assert again and again.is_due(stats(), BATCH, ONLINE, now_ms=100.0)
    assert again.choose([waiting("a", 300)], BATCH, ONLINE) == []


def test_rows_that_are_being_rescued_are_not_with_the_workers() -> None:
    rescues = Rescues(share=1.0, replicas=1, max_batch=8)
    first = rescues.begin(0.0)
    assert first and first.is_due(stats(), BATCH, ONLINE, now_ms=0.0)
    first.choose([waiting("a", 400)], BATCH, ONLINE)
    rescue = first.leased(lease("a"))
    # Of two rows one waits and one is rescued: no worker drains the queue.
    look = rescues.begin(100.0)
    assert look and look.is_due(stats(rows=2), BATCH, ONLINE, now_ms=100.0)
    assert look.choose([waiting("b", 400)], BATCH, ONLINE) == ["b"]
    rescues.ended(rescue)
    later = rescues.begin(200.0)
    assert later and later.is_due(stats(rows=2), BATCH, ONLINE, now_ms=200.0)
    assert later.choose([waiting("c", 400)], BATCH, ONLINE) == []


def test_a_round_begins_only_while_the_quota_lasts_and_goes_on_only_where_a_job_is_due() -> None:
    assert Rescues(share=0.0, replicas=1, max_batch=8).begin(0.0) is None
    look = Rescues(share=1.0, replicas=1, max_batch=8).begin(0.0)
    assert look and not look.is_due(stats(slack_ms=None), BATCH, ONLINE, now_ms=0.0)
    assert not look.is_due(stats(slack_ms=3_600_000), BATCH, ONLINE, now_ms=0.0)
