"""What every deadline queue must do, run on each of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.queue_harness import START_MS, Harness, job, memory, on_redis
from workers.queue import limits
from workers.queue.contract import (
    Accepted,
    Done,
    Failed,
    Full,
    KeyConflict,
    Lost,
    Missed,
    Outcome,
    QueueClosed,
    Release,
)
from workers.queue.embedded import EmbeddedServer
from workers.queue.job import JobState, LeaseRef
from workers.queue.retry import RetryPolicy
from workers.queue.settings import QueueSettings

Make = Callable[..., Awaitable[Harness]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    folder: Path = tmp_path_factory.mktemp("queue")
    with EmbeddedServer.start(folder, fsync="no") as running:
        yield running


@pytest.fixture(params=["memory", "redis"])
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    made: list[Harness] = []

    async def build(**settings: object) -> Harness:
        chosen = QueueSettings(**settings)  # type: ignore[arg-type]
        if request.param == "memory":
            harness = await memory(chosen)
        else:
            harness = await on_redis(request.getfixturevalue("server").url, chosen)
        made.append(harness)
        return harness

    # Started here, not inside a running test, because the server outlives the test's event loop.
    if request.param == "redis":
        request.getfixturevalue("server")
    yield build
    for harness in made:
        await harness.close()


async def ids(harness: Harness, n: int = 100, **more: int) -> list[str]:
    return [lease.id for lease in await harness.queue.claim(n, 10_000, "w", **more)]


async def test_submit_answers_the_deadline_by_the_queues_clock(make: Make) -> None:
    h = await make()
    assert await h.queue.submit([job("a", 500)]) == [Accepted("a", START_MS + 500)]
    status = await h.queue.state("a")
    assert status is not None
    assert (status.state, status.deadline_ms, status.submitted_ms) == (
        JobState.PENDING,
        START_MS + 500,
        START_MS,
    )
    assert (status.met, status.queued_ms, status.result) == (None, None, None)


async def test_submit_twice_is_submitted_once(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a", 500)])
    await h.advance(10)
    assert await h.queue.submit([job("a", 500)]) == [Accepted("a", START_MS + 500, duplicate=True)]
    assert (await h.queue.stats()).jobs == 1


async def test_the_same_key_and_content_answers_the_first_job(make: Make) -> None:
    h = await make()
    first = job("a", key="k", payload=b"x")
    again = replace(first, id="b", budget_ms=5)
    other = replace(first, id="c", payload=b"y")
    more_rows = replace(first, id="d", rows=2)
    other_tenant = replace(first, id="e", tenant="t")
    answers = await h.queue.submit([first, again, other, more_rows, other_tenant])
    assert answers == [
        Accepted("a", START_MS + 60_000),
        Accepted("a", START_MS + 60_000, duplicate=True),
        KeyConflict("c", "a"),
        KeyConflict("d", "a"),
        Accepted("e", START_MS + 60_000),
    ]
    assert await h.queue.state("b") is None


async def test_a_key_still_answers_after_its_job_has_ended(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a", key="k", payload=b"x")])
    (lease,) = await h.queue.claim(1, 1000, "w")
    await h.queue.settle([Done("a", lease.token, b"r")])
    assert await h.queue.submit([job("b", key="k", payload=b"x")]) == [
        Accepted("a", START_MS + 60_000, duplicate=True)
    ]


async def test_an_id_used_for_other_content_is_refused(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a", payload=b"x")])
    assert await h.queue.submit([job("a", payload=b"y")]) == [KeyConflict("a", "a")]


async def test_claim_hands_out_the_earliest_deadline_first_and_ties_as_they_came(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("late", 9000), job("z", 500), job("b", 500), job("a", 500), job("first", 100)])
    assert await ids(h, 3) == ["first", "z", "b"]
    assert await ids(h) == ["a", "late"]
    assert await ids(h) == []


async def test_a_claim_carries_everything_a_worker_needs(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a", 500, rows=7, tenant="t", variant="int8", payload=b"\x00\xff")])
    await h.advance(20)
    (lease,) = await h.queue.claim(5, 1000, "w")
    assert (lease.payload, lease.rows, lease.tenant, lease.variant) == (b"\x00\xff", 7, "t", "int8")
    assert (lease.deadline_ms, lease.lease_until_ms) == (START_MS + 500, START_MS + 1020)
    assert (lease.attempts, lease.lost, lease.submitted_ms) == (0, 0, START_MS)
    status = await h.queue.state("a")
    assert status is not None
    assert (status.state, status.queued_ms, status.worker) == (JobState.LEASED, 20, "w")


async def test_claim_keeps_within_the_rows_but_gives_at_least_one_job(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a", 100, rows=5), job("b", 200, rows=3), job("c", 300, rows=4)])
    assert await ids(h, max_rows=4) == ["a"]
    assert await ids(h, max_rows=7) == ["b", "c"]


async def test_settle_ends_each_job_by_itself(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a", 100), job("b", 200), job("c", 300), job("d", 400)])
    a, b, c, d = await h.queue.claim(4, 1000, "w")
    await h.advance(150)
    assert await h.queue.settle(
        [
            Done("a", a.token, b"ra", variant="int8"),
            Done("b", b.token, b"rb"),
            Failed("c", c.token, "bad row", retry=False),
            Missed("d", d.token, "no time"),
        ]
    ) == [True, True, True, True]
    states = [await h.queue.state(i) for i in "abcd"]
    assert [s and s.state for s in states] == [
        JobState.DONE,
        JobState.DONE,
        JobState.FAILED,
        JobState.EXPIRED,
    ]
    assert [s and s.met for s in states] == [False, True, False, False]
    assert [s and s.result for s in states] == [b"ra", b"rb", None, None]
    assert [s and s.error for s in states] == [None, None, "bad row", "no time"]
    assert states[0] is not None and states[0].variant == "int8"


async def test_settling_twice_changes_nothing_and_says_the_same(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a"), job("b")])
    a, b = await h.queue.claim(2, 1000, "w")
    assert await h.queue.settle([Done("a", a.token, b"first"), Failed("b", b.token, "x")]) == [True, True]
    assert await h.queue.settle([Done("a", a.token, b"second"), Failed("b", b.token, "x")]) == [True, True]
    status, other = await h.queue.state("a"), await h.queue.state("b")
    assert status is not None and status.result == b"first"
    assert other is not None and other.attempts == 1
    assert (await h.queue.stats()).totals["done"] == 1


async def test_a_result_after_the_lease_was_given_back_is_stale(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a"), job("b"), job("c")])
    a, b, c = await h.queue.claim(3, 1000, "w")
    given: list[Outcome] = [Release("a", a.token), Failed("b", b.token, "x")]
    given.append(Failed("c", c.token, "x", retry=False))
    assert await h.queue.settle(given) == [True, True, True]
    assert await h.queue.settle([Done(x.id, x.token, b"r") for x in (a, b, c)]) == [False, False, False]
    assert await h.queue.settle(given) == [True, True, True]
    (again,) = await h.queue.claim(1, 1000, "w")
    assert again.id == "a"
    assert await h.queue.settle(given[:1]) == [True]  # still the old answer, and the new lease stands
    assert await h.queue.settle([Done("a", again.token, b"r")]) == [True]


async def test_a_stale_token_changes_nothing_and_says_so(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a")])
    (old,) = await h.queue.claim(1, 100, "slow")
    await h.advance(101)
    (new,) = await h.queue.claim(1, 10_000, "quick")
    assert new.lost == 1
    assert await h.queue.extend([old.ref], 9999) == [False]
    assert await h.queue.settle([Done("a", old.token, b"late")]) == [False]
    assert await h.queue.settle([Release("a", old.token)]) == [False]
    assert await h.queue.settle([Failed("a", old.token, "late")]) == [False]
    assert await h.queue.settle([Done("a", new.token, b"good")]) == [True]
    assert await h.queue.settle([Done("a", old.token, b"late")]) == [False]
    status = await h.queue.state("a")
    assert status is not None and status.result == b"good"


async def test_settle_of_an_unknown_job_is_stale(make: Make) -> None:
    h = await make()
    assert await h.queue.settle([Done("nobody", "t", b"r")]) == [False]
    assert await h.queue.extend([LeaseRef("nobody", "t")], 100) == [False]


async def test_extend_keeps_a_lease_from_running_out(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a")])
    (lease,) = await h.queue.claim(1, 100, "w")
    await h.advance(90)
    assert await h.queue.extend([lease.ref], 100) == [True]
    await h.advance(90)
    assert await ids(h) == []
    await h.advance(10)
    assert await ids(h) == ["a"]


async def test_release_gives_back_at_once_and_counts_no_attempt(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a", 500)])
    (lease,) = await h.queue.claim(1, 1000, "w")
    assert await h.queue.settle([Release("a", lease.token)]) == [True]
    (again,) = await h.queue.claim(1, 1000, "w")
    assert (again.attempts, again.lost, again.deadline_ms) == (0, 0, lease.deadline_ms)
    assert again.token != lease.token


async def test_a_retry_keeps_its_deadline_and_its_place(make: Make) -> None:
    # A backoff written into the ordering score would put "a" behind "b" for good.
    h = await make(retry=RetryPolicy(base_ms=100, cap_ms=100))
    await h.queue.submit([job("a", 5000), job("b", 9000)])
    (lease,) = await h.queue.claim(1, 1000, "w")
    await h.queue.settle([Failed("a", lease.token, "flaky")])
    stats = await h.queue.stats()
    assert (stats.delayed_jobs, stats.waiting_jobs, stats.leased_jobs) == (1, 1, 0)
    assert [w.id for w in await h.queue.peek(5)] == ["b"]
    await h.advance(100)
    (again,) = await h.queue.claim(1, 1000, "w")
    assert (again.id, again.deadline_ms, again.attempts) == ("a", START_MS + 5000, 1)


async def test_backoff_grows_and_attempts_end_in_a_dead_letter(make: Make) -> None:
    h = await make(retry=RetryPolicy(base_ms=100, cap_ms=1000))
    await h.queue.submit([job("a", 60_000, max_attempts=3)])
    for wait in (49, 51, 99, 101):
        await h.advance(wait)
        for lease in await h.queue.claim(1, 1000, f"w{wait}"):
            await h.queue.settle([Failed("a", lease.token, f"boom {wait}")])
    await h.advance(201)
    (lease,) = await h.queue.claim(1, 1000, "last")
    assert lease.attempts == 2
    await h.queue.settle([Failed("a", lease.token, "boom last")])
    status = await h.queue.state("a")
    assert status is not None
    assert status.state is JobState.DEAD
    assert status.error == "failed 3 times; last: boom last"
    assert [f.worker for f in status.failures][-1] == "last"
    assert len(status.failures) == 3


async def test_a_retry_that_cannot_make_its_deadline_is_given_up_on_at_once(make: Make) -> None:
    h = await make(retry=RetryPolicy(base_ms=1000, cap_ms=1000))
    await h.queue.submit([job("a", 400)])
    (lease,) = await h.queue.claim(1, 1000, "w")
    await h.queue.settle([Failed("a", lease.token, "flaky")])
    status = await h.queue.state("a")
    assert status is not None and status.state is JobState.DEAD


async def test_an_expired_job_is_never_run_and_never_most_urgent(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a", 100), job("b", 900)])
    await h.advance(100)
    assert await ids(h) == ["b"]
    status = await h.queue.state("a")
    assert status is not None
    assert (status.state, status.met, status.finished_ms) == (JobState.EXPIRED, False, START_MS + 100)


async def test_the_reaper_expires_without_any_claim(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a", 100), job("b", 100, tenant="t"), job("c", 900)])
    await h.advance(99)
    assert await h.queue.reap() == 0
    await h.advance(1)
    assert await h.queue.reap() == 2
    assert await h.queue.reap() == 0
    assert (await h.queue.stats()).totals["expired"] == 2


async def test_a_leased_job_may_finish_late_and_is_reported_late(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a", 100)])
    (lease,) = await h.queue.claim(1, 1000, "w")
    await h.advance(200)
    await h.queue.reap()
    assert await h.queue.settle([Done("a", lease.token, b"r")]) == [True]
    status = await h.queue.state("a")
    assert status is not None and (status.state, status.met) == (JobState.DONE, False)


async def test_a_lease_lost_after_the_deadline_expires_the_job(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a", 100)])
    (lease,) = await h.queue.claim(1, 1000, "w")
    await h.advance(1000)
    assert await h.queue.reap() == 1
    status = await h.queue.state("a")
    assert status is not None and status.state is JobState.EXPIRED
    assert await h.queue.settle([Done("a", lease.token, b"r")]) == [False]


async def test_work_of_a_dead_worker_comes_back(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a"), job("b")])
    await h.queue.claim(2, 100, "dies")
    await h.advance(99)
    assert await ids(h) == []
    await h.advance(1)
    leases = await h.queue.claim(2, 100, "w")
    assert [(x.id, x.attempts, x.lost) for x in leases] == [("a", 0, 1), ("b", 0, 1)]


async def test_a_job_that_kills_its_workers_goes_alone_and_then_dies(make: Make) -> None:
    h = await make(max_lost_leases=3, suspect_after=2)
    await h.queue.submit([job("a", 60_000), job("b", 70_000)])
    for expected in (["a", "b"], ["a", "b"], ["a"]):
        assert [x.id for x in await h.queue.claim(5, 100, "w")] == expected
        if expected == ["a"]:
            assert await ids(h) == ["b"]
        await h.advance(100)
    assert await ids(h) == []
    status = await h.queue.state("a")
    assert status is not None
    assert (status.state, status.error) == (JobState.DEAD, "lost its lease 3 times")


async def test_a_job_that_its_worker_gave_up_on_counts_a_lost_lease_with_the_reason(make: Make) -> None:
    harness = await make(max_lost_leases=2, suspect_after=1)
    await harness.queue.submit([job("a"), job("b")])
    first, _ = await harness.queue.claim(2, 1000, "w")
    gave_up = Lost("a", first.token, "the model hangs")
    assert await harness.queue.settle([gave_up]) == [True]
    assert await harness.queue.settle([gave_up]) == [True]  # as after an answer that got lost
    assert await harness.queue.settle([Release("a", first.token)]) == [False]
    (again,) = await harness.queue.claim(5, 1000, "w")
    assert (again.id, again.attempts, again.lost) == ("a", 0, 1)
    assert await harness.queue.settle([Lost("a", again.token, "the model hangs")]) == [True]
    assert await harness.queue.settle([Lost("a", again.token, "the model hangs")]) == [True]
    status = await harness.queue.state("a")
    assert status is not None and status.state is JobState.DEAD
    assert status.error == "lost its lease 2 times; last: the model hangs"
    assert [f.error for f in status.failures] == ["the model hangs"] * 2
    assert (await harness.queue.stats()).totals["lost"] == 2


async def test_jobs_that_their_worker_gave_up_on_go_alone_at_once(make: Make) -> None:
    """One of them hung the model, and which is not known: another batch would hang with it."""
    harness = await make(max_lost_leases=10, suspect_after=3)
    await harness.queue.submit([job("a"), job("b"), job("c", 90_000)])
    leases = await harness.queue.claim(2, 1000, "w")
    await harness.queue.settle([Lost(x.id, x.token, "the model hangs") for x in leases])
    for expected in (["a"], ["b"], ["c"]):
        assert [x.id for x in await harness.queue.claim(5, 1000, "w")] == expected


async def test_a_job_that_is_given_up_on_after_its_deadline_expires(make: Make) -> None:
    harness = await make()
    await harness.queue.submit([job("a", 500)])
    (lease,) = await harness.queue.claim(1, 1000, "w")
    await harness.advance(600)
    assert await harness.queue.settle([Lost("a", lease.token, "the model hangs")]) == [True]
    status = await harness.queue.state("a")
    assert status is not None and (status.state, status.error) == (JobState.EXPIRED, "the model hangs")


async def test_cancel_ends_a_waiting_or_leased_job_and_only_that(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a"), job("b"), job("c")])
    assert await h.queue.cancel("b") is JobState.CANCELLED
    a, c = await h.queue.claim(5, 1000, "w")
    assert (a.id, c.id) == ("a", "c")
    assert await h.queue.cancel("a") is JobState.CANCELLED
    # One departed caller of a batch must not take the others along.
    assert await h.queue.settle([Done("a", a.token, b"r"), Done("c", c.token, b"r")]) == [False, True]
    assert await h.queue.cancel("c") is JobState.DONE
    assert await h.queue.cancel("a") is JobState.CANCELLED
    assert await h.queue.cancel("nobody") is None


async def test_cancel_reaches_a_job_in_backoff(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a")])
    (lease,) = await h.queue.claim(1, 1000, "w")
    await h.queue.settle([Failed("a", lease.token, "x")])
    assert await h.queue.cancel("a") is JobState.CANCELLED
    await h.advance(1000)
    assert await ids(h) == []
    stats = await h.queue.stats()
    assert (stats.jobs, stats.rows, stats.bytes, stats.delayed_jobs) == (0, 0, 0, 0)


async def test_promote_leases_exactly_the_waiting_ones(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a"), job("b", 50), job("c")])
    (lease,) = await h.queue.claim(1, 10_000, "w")
    assert lease.id == "b"
    await h.queue.submit([job("late", 10)])
    await h.advance(20)
    promoted = await h.queue.promote(["c", "b", "late", "nobody"], 1000, "router")
    assert [x.id for x in promoted] == ["c"]
    assert await h.queue.settle([Done("c", promoted[0].token, b"r")]) == [True]
    assert await ids(h) == ["a"]


async def test_tenants_share_by_weight_and_none_starves(make: Make) -> None:
    h = await make(weights={"big": 1.0, "paid": 3.0})
    await h.queue.submit([job(f"big{i}", 1000, tenant="big") for i in range(200)])
    await h.queue.submit([job(f"paid{i}", 90_000, tenant="paid") for i in range(30)])
    first = await ids(h, 40)
    assert sum(i.startswith("paid") for i in first) == 30
    await h.queue.submit([job(f"small{i}", 90_000, tenant="small") for i in range(10)])
    second = await ids(h, 20)
    assert sum(i.startswith("small") for i in second) == 10


async def test_within_a_tenant_the_deadline_decides(make: Make) -> None:
    h = await make()
    for tenant in "xy":
        await h.queue.submit([job(f"{tenant}{d}", d, tenant=tenant) for d in (3000, 1000, 2000)])
    order = await ids(h)
    assert [i for i in order if i[0] == "x"] == ["x1000", "x2000", "x3000"]
    assert [i for i in order if i[0] == "y"] == ["y1000", "y2000", "y3000"]


async def test_a_full_queue_refuses_with_a_time(make: Make) -> None:
    h = await make(max_jobs=2)
    answers = await h.queue.submit([job("a"), job("b"), job("c")])
    assert isinstance(answers[2], Full)
    assert (answers[2].id, answers[2].what) == ("c", "jobs")
    assert answers[2].retry_after_ms > 0
    assert await h.queue.state("c") is None
    (lease,) = await h.queue.claim(1, 1000, "w")
    assert isinstance((await h.queue.submit([job("c")]))[0], Full)  # a leased job still holds its room
    await h.queue.settle([Done("a", lease.token, b"r")])
    assert isinstance((await h.queue.submit([job("c")]))[0], Accepted)


@pytest.mark.parametrize(
    ("bounds", "what"),
    [
        ({"max_bytes": 250}, "bytes"),
        ({"tenant_jobs": 2}, "tenant jobs"),
        ({"tenant_bytes": 250}, "tenant bytes"),
    ],
)
async def test_every_bound_is_named(make: Make, bounds: dict[str, int], what: str) -> None:
    h = await make(**bounds)
    jobs = [job(i, payload=b"x" * 100, tenant="t") for i in "abc"]
    answers = await h.queue.submit(jobs)
    assert [type(a) for a in answers] == [Accepted, Accepted, Full]
    assert isinstance(answers[2], Full) and answers[2].what == what
    if what.startswith("tenant"):
        assert isinstance((await h.queue.submit([job("d", tenant="u")]))[0], Accepted)


@pytest.mark.parametrize(
    ("own", "common", "accepted", "what"),
    [
        ((1, None), {"tenant_jobs": 3}, 1, "tenant jobs"),
        ((3, None), {"tenant_jobs": 1}, 3, "tenant jobs"),
        ((None, 150), {"tenant_bytes": 1000}, 1, "tenant bytes"),
        ((None, 1000), {"tenant_jobs": 2, "tenant_bytes": 150}, 2, "tenant jobs"),
        ((2, None), {"tenant_bytes": 150}, 1, "tenant bytes"),
        ((2, 150), {}, 1, "tenant bytes"),
    ],
)
async def test_a_tenants_own_bounds_stand_in_for_the_common_ones_each_by_itself(
    make: Make, own: tuple[int | None, int | None], common: dict[str, int], accepted: int, what: str
) -> None:
    h = await make(bounds={"paid": own}, **common)
    answers = await h.queue.submit([job(f"p{i}", payload=b"x" * 100, tenant="paid") for i in range(4)])
    assert [isinstance(a, Accepted) for a in answers] == [n < accepted for n in range(4)]
    refused = answers[accepted]
    assert isinstance(refused, Full) and refused.what == what and refused.retry_after_ms > 0
    # Another tenant has the common bounds, and callers without a tenant are one too.
    for tenant in ("other", ""):
        answers = await h.queue.submit([job(f"{tenant}{i}", tenant=tenant) for i in range(4)])
        assert sum(isinstance(a, Accepted) for a in answers) == min(4, common.get("tenant_jobs", 4))


async def test_a_tenants_room_comes_back_however_its_jobs_end(make: Make) -> None:
    h = await make(bounds={"t": (1, None)})

    async def room() -> bool:
        (answer,) = await h.queue.submit([job("probe", 60_000, tenant="t")])
        if isinstance(answer, Accepted):
            await h.queue.cancel("probe")
        return isinstance(answer, Accepted)

    await h.queue.submit([job("done", tenant="t")])
    assert not await room()
    (lease,) = await h.queue.claim(1, 1000, "w")
    assert not await room()
    await h.queue.settle([Release("done", lease.token)])
    assert not await room()
    (lease,) = await h.queue.claim(1, 1000, "w")
    await h.queue.settle([Done("done", lease.token, b"r")])
    assert await room()

    await h.queue.submit([job("late", 10, tenant="t")])
    await h.advance(11)
    await h.queue.reap()
    assert await room()

    await h.queue.submit([job("cancelled", tenant="t")])
    await h.queue.cancel("cancelled")
    assert await room()


async def test_other_bounds_hold_from_the_next_submit_and_what_was_accepted_stays(make: Make) -> None:
    h = await make(bounds={"t": (3, None)})
    await h.queue.submit([job(i, tenant="t") for i in "abc"])
    h.queue.configure(QueueSettings(bounds={"t": (1, None)}))
    assert isinstance((await h.queue.submit([job("d", tenant="t")]))[0], Full)
    assert await ids(h) == ["a", "b", "c"]
    h.queue.configure(QueueSettings())
    assert isinstance((await h.queue.submit([job("d", tenant="t")]))[0], Accepted)


async def test_other_weights_hold_from_the_next_claim(make: Make) -> None:
    h = await make()
    for tenant in "xy":
        await h.queue.submit([job(f"{tenant}{i}", tenant=tenant) for i in range(40)])
    assert sum(i.startswith("x") for i in await ids(h, 20)) == 10
    h.queue.configure(QueueSettings(weights={"x": 4.0}))
    assert sum(i.startswith("x") for i in await ids(h, 20)) in (15, 16, 17)


async def test_a_duplicate_is_answered_even_when_full(make: Make) -> None:
    h = await make(max_jobs=1)
    await h.queue.submit([job("a")])
    assert isinstance((await h.queue.submit([job("a")]))[0], Accepted)


async def test_counts_and_bytes_add_up(make: Make) -> None:
    h = await make()
    await h.queue.submit([job(i, rows=n, payload=b"x" * n) for n, i in enumerate("abcd", start=1)])
    a, b = await h.queue.claim(2, 1000, "w")
    stats = await h.queue.stats()
    assert (stats.jobs, stats.rows, stats.bytes) == (4, 10, 10)
    assert (stats.waiting_jobs, stats.waiting_rows, stats.leased_jobs) == (2, 7, 2)
    assert stats.earliest_deadline_ms == START_MS + 60_000
    await h.queue.settle([Done("a", a.token, b""), Failed("b", b.token, "x", retry=False)])
    await h.queue.cancel("c")
    stats = await h.queue.stats()
    assert (stats.jobs, stats.rows, stats.bytes, stats.waiting_rows) == (1, 4, 4, 4)
    assert {k: v for k, v in stats.totals.items() if v} == {
        "submitted": 4,
        "done": 1,
        "failed": 1,
        "cancelled": 1,
    }


async def test_the_rate_at_which_rows_end_is_given_for_a_minute_after_the_last_one(make: Make) -> None:
    h = await make()
    assert (await h.queue.stats()).rows_per_s is None
    await h.queue.submit([job("a", rows=50)])
    (lease,) = await h.queue.claim(1, 1000, "w")
    await h.queue.settle([Done("a", lease.token, b"")])
    assert (await h.queue.stats()).rows_per_s == pytest.approx(50.0)
    await h.advance(10_000)
    assert (await h.queue.stats()).rows_per_s == pytest.approx(50.0 / math.e)
    await h.advance(50_000)
    assert (await h.queue.stats()).rows_per_s == pytest.approx(50.0 / math.exp(6.0))
    await h.advance(1)
    assert (await h.queue.stats()).rows_per_s is None, "what ran a minute ago says nothing about now"


async def test_a_record_keeps_the_last_failures_each_cut_to_its_bound(make: Make) -> None:
    h = await make(retry=RetryPolicy(base_ms=1, cap_ms=1))
    await h.queue.submit([job("a", max_attempts=100)])
    for count in range(12):
        (lease,) = await h.queue.claim(1, 1000, "w")
        await h.queue.settle([Failed("a", lease.token, f"{count}:" + "x" * 5000)])
        await h.advance(1)
    status = await h.queue.state("a")
    assert status is not None and status.attempts == 12
    assert [f.error.split(":")[0] for f in status.failures] == [str(n) for n in range(2, 12)]
    assert {len(f.error) for f in status.failures} == {limits.MAX_ERROR_CHARS} == {len(status.error or "")}


async def test_a_large_submit_is_answered_and_claimed_in_its_order(make: Make) -> None:
    h = await make()
    names = [f"j{i:04d}" for i in range(1200)]
    answers = await h.queue.submit([job(name, payload=b"x" * 9000) for name in names])
    assert [a.id for a in answers] == names
    assert [name for _ in range(3) for name in await ids(h, 500)] == names


async def test_wait_is_woken_by_the_end_of_a_job(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a"), job("b")])
    (lease,) = await h.queue.claim(1, 10_000, "w")
    waiting = asyncio.create_task(h.queue.wait(["a", "b"], 30))
    other = asyncio.create_task(h.queue.wait(["a"], 30))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    await h.queue.settle([Done("a", lease.token, b"r")])
    assert [s.id for s in await asyncio.wait_for(waiting, 4)] == ["a"]
    assert [s.result for s in await asyncio.wait_for(other, 4)] == [b"r"]


async def test_wait_tells_of_cancelled_and_expired(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a"), job("b", 100)])
    await h.queue.cancel("a")
    assert [s.state for s in await h.queue.wait(["a", "b"], 30)] == [JobState.CANCELLED]
    waiting = asyncio.create_task(h.queue.wait(["b"], 30))
    for _ in range(20):
        await asyncio.sleep(0)
    await h.advance(100)
    await h.queue.reap()
    assert [s.state for s in await asyncio.wait_for(waiting, 4)] == [JobState.EXPIRED]


async def test_wait_gives_nothing_at_its_timeout_or_for_strangers(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a")])
    assert await h.queue.wait(["a"], 0.02) == []
    assert await asyncio.wait_for(h.queue.wait(["nobody"], 30), 4) == []


async def test_an_idle_worker_is_woken_by_a_submit(make: Make) -> None:
    h = await make()
    assert await h.queue.wait_for_work(0.01) is False
    idle = asyncio.create_task(h.queue.wait_for_work(30))
    second = asyncio.create_task(h.queue.wait_for_work(30))
    for _ in range(20):
        await asyncio.sleep(0)
    await h.queue.submit([job("a")])
    assert await asyncio.wait_for(idle, 4) is True
    assert await asyncio.wait_for(second, 4) is True
    assert await asyncio.wait_for(h.queue.wait_for_work(30), 4) is True


async def test_dead_letters_can_be_listed_shown_retried_and_dropped(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a", max_attempts=1), job("b", 70_000, max_attempts=1), job("c", 80_000)])
    a, b, _ = await h.queue.claim(3, 10_000, "w")
    await h.queue.settle([Failed("a", a.token, "boom a")])
    await h.advance(5)
    await h.queue.settle([Failed("b", b.token, "boom b")])
    assert [s.id for s in await h.queue.dead_letters()] == ["b", "a"]
    assert [s.id for s in await h.queue.dead_letters(limit=1)] == ["b"]
    letter = await h.queue.show_dead("a")
    assert letter is not None
    assert (letter.payload, letter.max_attempts) == (b"payload of a", 1)
    assert [(f.at_ms, f.worker, f.error) for f in letter.status.failures] == [(START_MS, "w", "boom a")]
    assert await h.queue.show_dead("c") is None
    assert await h.queue.retry_dead(["a", "c", "nobody"], 500) == ["a"]
    assert await h.queue.retry_dead(["a"], 500) == []
    assert await h.queue.drop_dead(["b", "a", "nobody"]) == ["b"]
    assert await h.queue.state("b") is None
    (again,) = await h.queue.claim(5, 1000, "w")
    assert (again.id, again.attempts, again.deadline_ms) == ("a", 0, START_MS + 505)
    assert again.payload == b"payload of a"
    stats = await h.queue.stats()
    assert (stats.jobs, stats.dead_letters, stats.leased_jobs) == (2, 0, 2)


async def test_dead_letters_are_bounded(make: Make) -> None:
    h = await make(max_dead_letters=2)
    for i in "abc":
        await h.queue.submit([job(i, max_attempts=1)])
        (lease,) = await h.queue.claim(1, 1000, "w")
        await h.queue.settle([Failed(i, lease.token, "boom")])
        await h.advance(1)
    await h.queue.reap()
    assert [s.id for s in await h.queue.dead_letters()] == ["c", "b"]
    assert await h.queue.state("a") is None


async def test_a_closed_queue_says_so_and_wakes_its_waiters(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("a")])
    waiting = asyncio.create_task(h.queue.wait(["a"], 30))
    for _ in range(20):
        await asyncio.sleep(0)
    await h.queue.close()
    await h.queue.close()
    with pytest.raises(QueueClosed):
        await asyncio.wait_for(waiting, 4)
    with pytest.raises(QueueClosed):
        await h.queue.submit([job("b")])


async def test_a_tenant_with_only_late_jobs_does_not_hide_anothers_work(make: Make) -> None:
    h = await make()
    await h.queue.submit([job("late", 1)])
    await h.advance(1)
    await h.queue.submit([job("due", tenant="other")])
    assert await ids(h, 1) == ["due"]


async def test_many_late_jobs_are_expired_a_bounded_number_at_a_time_and_hide_nothing(make: Make) -> None:
    harness = await make()
    tenants = [f"t{n}" for n in range(5)]
    late = [job(f"{t}-{n}", 1000, tenant=t) for t in tenants for n in range(4000)]
    await harness.queue.submit(late)
    await harness.queue.submit([job(f"{t}-live", 3_600_000, tenant=t) for t in tenants])
    await harness.advance(2000)
    claimed: list[str] = []
    expired = 0
    for _ in range(40):
        claimed += [x.id for x in await harness.queue.claim(10, 60_000, "w")]
        stats = await harness.queue.stats()
        assert stats.totals["expired"] - expired <= limits.MAX_EXPIRED_PER_CLAIM
        assert stats.leased_jobs == len(claimed)
        expired = stats.totals["expired"]
        if len(claimed) == 5:
            break
    assert sorted(claimed) == [f"{t}-live" for t in tenants]
    assert (stats.jobs, stats.waiting_jobs, expired) == (5, 0, 20_000)


async def test_more_late_jobs_than_one_reap_moves_are_all_expired(make: Make) -> None:
    harness = await make()
    await harness.queue.submit([job(f"j{n}", 1000, tenant=f"t{n % 3}") for n in range(3500)])
    await harness.advance(2000)
    assert await harness.queue.reap() == 3500
    stats = await harness.queue.stats()
    assert (stats.jobs, stats.totals["expired"]) == (0, 3500)


async def test_a_claim_takes_as_many_jobs_of_one_tenant_as_it_may(make: Make) -> None:
    harness = await make()
    await harness.queue.submit([job(f"j{n:04d}", 60_000 + n) for n in range(1000)])
    assert await ids(harness, 700) == [f"j{n:04d}" for n in range(700)]
    assert await ids(harness, 700) == [f"j{n:04d}" for n in range(700, 1000)]


async def test_dead_letters_by_the_thousand_are_listed_retried_and_dropped(make: Make) -> None:
    harness = await make()
    names = [f"j{n:04d}" for n in range(2500)]
    await harness.queue.submit([job(name, max_attempts=1) for name in names])
    while leases := await harness.queue.claim(1000, 60_000, "w"):
        await harness.queue.settle([Failed(x.id, x.token, "boom") for x in leases])
    assert sorted(x.id for x in await harness.queue.dead_letters(5000)) == names
    assert len(await harness.queue.dead_letters(1500)) == 1500
    assert await harness.queue.retry_dead(names[:1200], 60_000) == names[:1200]
    assert await harness.queue.drop_dead(names[1200:]) == names[1200:]
    stats = await harness.queue.stats()
    assert (stats.dead_letters, stats.waiting_jobs) == (0, 1200)


async def test_leases_by_the_thousand_are_promoted_and_renewed(make: Make) -> None:
    harness = await make()
    names = [f"j{n:04d}" for n in range(5000)]
    await harness.queue.submit([job(name) for name in names])
    leases = await harness.queue.promote([*names, names[0]], 1000, "router")
    assert [x.id for x in leases] == names
    assert all(await harness.queue.extend([x.ref for x in leases], 5000))


async def test_a_claim_hands_out_a_bounded_number_of_bytes_but_at_least_one_job(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_BYTES_PER_CLAIM", 1000)
    harness = await make()
    sizes = {"a": 600, "b": 400, "c": 1, "d": 5000, "e": 10}
    await harness.queue.submit([job(name, payload=b"x" * size) for name, size in sizes.items()])
    assert [await ids(harness) for _ in range(5)] == [["a", "b"], ["c"], ["d"], ["e"], []]
