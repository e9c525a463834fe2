"""The same random commands, clock steps and stale tokens on both queues: they must never differ."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.queue_harness import memory, on_redis
from tests.support.effort import tries
from workers.queue.contract import Done, Failed, Lost, Missed, Outcome, Release
from workers.queue.embedded import EmbeddedServer
from workers.queue.job import TERMINAL, JobState, JobStatus, Lease, LeaseRef, NewJob
from workers.queue.retry import RetryPolicy
from workers.queue.settings import QueueSettings

T = TypeVar("T")
SETTINGS = QueueSettings(
    max_jobs=6,
    max_bytes=24,
    tenant_jobs=4,
    bounds={"y": (2, 10)},
    weights={"x": 2.0},
    max_lost_leases=4,
    suspect_after=2,
    max_dead_letters=3,
    retry=RetryPolicy(base_ms=50, cap_ms=150),
)
#: What a changed policy may bring while jobs wait.
OTHERS = [
    SETTINGS,
    replace(SETTINGS, bounds={"x": (1, None), "y": (None, 4)}, weights={}),
    replace(SETTINGS, tenant_jobs=None, tenant_bytes=12, bounds={"": (3, None)}, weights={"y": 3.0}),
]
IDS = st.sampled_from([f"j{i:02d}" for i in range(8)])
TOKENS = st.integers(0, 20)


def plain(leases: list[Lease]) -> list[tuple[Any, ...]]:
    """What two claims must agree on: all but the token."""
    return [
        (x.id, x.payload, x.rows, x.deadline_ms, x.attempts, x.tenant, x.variant, x.lease_until_ms, x.lost)
        for x in leases
    ]


class BothQueues(RuleBasedStateMachine):
    """One command at a time on both. Tokens differ between them and are kept as pairs."""

    url: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.left = self.do(memory(SETTINGS, seed=7))
        self.right = self.do(on_redis(self.url, SETTINGS, seed=7))
        self.pairs: list[tuple[Lease, Lease]] = []
        self.ended: dict[str, JobState] = {}
        self.revived: set[str] = set()

    def teardown(self) -> None:
        self.do(self.left.close())
        self.do(self.right.close())
        self.loop.close()

    def do(self, step: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(step)

    @rule(
        jobs=st.lists(
            st.tuples(IDS, st.integers(1, 400), st.integers(1, 4), st.sampled_from(["", "x", "y"])),
            min_size=1,
            max_size=4,
        ),
        key=st.sampled_from([None, None, "k1", "k2"]),
        content=st.sampled_from([b"aa", b"aa", b"bbbbbb"]),
    )
    def submit(self, jobs: list[tuple[str, int, int, str]], key: str | None, content: bytes) -> None:
        new = [NewJob(id, content, rows, budget, tenant, key=key) for id, budget, rows, tenant in jobs]
        assert self.do(self.left.queue.submit(new)) == self.do(self.right.queue.submit(new))

    @rule(n=st.integers(1, 6), lease_ms=st.integers(10, 300), rows=st.sampled_from([None, 1, 5]))
    def claim(self, n: int, lease_ms: int, rows: int | None) -> None:
        left, right = (
            self.do(h.queue.claim(n, lease_ms, "w", max_rows=rows)) for h in (self.left, self.right)
        )
        assert plain(left) == plain(right)
        assert all(x.deadline_ms > self.left.now_ms for x in left)
        for tenant in {x.tenant for x in left}:
            deadlines = [x.deadline_ms for x in left if x.tenant == tenant]
            assert deadlines == sorted(deadlines)
        self.pairs = (self.pairs + list(zip(left, right, strict=True)))[-21:]

    @rule(ids=st.lists(IDS, min_size=1, max_size=3, unique=True), lease_ms=st.integers(10, 300))
    def promote(self, ids: list[str], lease_ms: int) -> None:
        left, right = (self.do(h.queue.promote(ids, lease_ms, "r")) for h in (self.left, self.right))
        assert plain(left) == plain(right)
        self.pairs = (self.pairs + list(zip(left, right, strict=True)))[-21:]

    @rule(
        which=st.lists(TOKENS, min_size=1, max_size=4),
        kind=st.sampled_from(["done", "failed", "retry", "release", "missed", "lost"]),
    )
    def settle(self, which: list[int], kind: str) -> None:
        pairs = [self.pairs[i % len(self.pairs)] for i in which] if self.pairs else []
        for side in (0, 1):
            self._settled = getattr(self, "_settled", {})
            harness = (self.left, self.right)[side]
            outcomes = [self.outcome(kind, pair[side]) for pair in pairs]
            self._settled[side] = self.do(harness.queue.settle(outcomes))
        assert self._settled[0] == self._settled[1]

    @staticmethod
    def outcome(kind: str, lease: Lease) -> Outcome:
        match kind:
            case "done":
                return Done(lease.id, lease.token, b"result", "v")
            case "failed" | "retry":
                return Failed(lease.id, lease.token, "boom", retry=kind == "retry")
            case "missed":
                return Missed(lease.id, lease.token, "too late")
            case "lost":
                return Lost(lease.id, lease.token, "the model hangs")
        return Release(lease.id, lease.token)

    @rule(which=st.lists(TOKENS, min_size=1, max_size=4), lease_ms=st.integers(10, 300))
    def extend(self, which: list[int], lease_ms: int) -> None:
        pairs = [self.pairs[i % len(self.pairs)] for i in which] if self.pairs else []
        left = self.do(self.left.queue.extend([a.ref for a, _ in pairs], lease_ms))
        right = self.do(self.right.queue.extend([b.ref for _, b in pairs], lease_ms))
        assert left == right

    @rule(id=IDS)
    def stale_token(self, id: str) -> None:
        for harness in (self.left, self.right):
            before = self.do(harness.queue.state(id))
            assert self.do(harness.queue.settle([Done(id, "forged", b"no")])) == [False]
            assert self.do(harness.queue.extend([LeaseRef(id, "forged")], 100)) == [False]
            assert self.do(harness.queue.state(id)) == before

    @rule(id=IDS)
    def cancel(self, id: str) -> None:
        assert self.do(self.left.queue.cancel(id)) == self.do(self.right.queue.cancel(id))

    @rule(ids=st.lists(IDS, max_size=3, unique=True), budget=st.integers(1, 400), drop=st.booleans())
    def dead_letters(self, ids: list[str], budget: int, drop: bool) -> None:
        letters = [self.do(h.queue.dead_letters()) for h in (self.left, self.right)]
        assert letters[0] == letters[1]
        for id in ids:
            assert self.do(self.left.queue.show_dead(id)) == self.do(self.right.queue.show_dead(id))
        if drop:
            moved = [self.do(h.queue.drop_dead(ids)) for h in (self.left, self.right)]
        else:
            moved = [self.do(h.queue.retry_dead(ids, budget)) for h in (self.left, self.right)]
        assert moved[0] == moved[1]
        self.revived.update(moved[0])

    @rule(ms=st.sampled_from([1, 7, 50, 200, 500]))
    def time_passes(self, ms: int) -> None:
        self.do(self.left.advance(ms))
        self.do(self.right.advance(ms))

    @rule(which=st.sampled_from(range(len(OTHERS))))
    def reconfigure(self, which: int) -> None:
        for harness in (self.left, self.right):
            harness.queue.configure(OTHERS[which])

    @rule()
    def reap(self) -> None:
        assert self.do(self.left.queue.reap()) == self.do(self.right.queue.reap())

    @rule(n=st.integers(1, 20))
    def peek(self, n: int) -> None:
        assert self.do(self.left.queue.peek(n)) == self.do(self.right.queue.peek(n))

    @invariant()
    def both_know_the_same(self) -> None:
        for i in range(8):
            id = f"j{i:02d}"
            left, right = (self.do(h.queue.state(id)) for h in (self.left, self.right))
            assert left == right
            self.first_terminal_state_wins(id, left)

    def first_terminal_state_wins(self, id: str, status: JobStatus | None) -> None:
        if status is None or id in self.revived:
            self.ended.pop(id, None)
            self.revived.discard(id)
            return
        before = self.ended.get(id)
        assert before is None or status.state is before, f"{id} was {before} and is {status.state}"
        if status.state in TERMINAL:
            self.ended[id] = status.state

    @invariant()
    def counts_and_bytes_add_up(self) -> None:
        left, right = (self.do(h.queue.stats()) for h in (self.left, self.right))
        for stats in (left, right):
            assert stats.jobs == stats.waiting_jobs + stats.delayed_jobs + stats.leased_jobs
        assert left.rows_per_s == pytest.approx(right.rows_per_s)
        for name in set(left.__slots__) - {"rows_per_s"}:
            assert getattr(left, name) == getattr(right, name), name


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("queue")
    with EmbeddedServer.start(folder, fsync="no") as server:
        yield server.url


def test_both_queues_answer_alike_whatever_is_asked(url: str) -> None:
    machine = type("OnThisServer", (BothQueues,), {"url": url})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=tries(20),
            stateful_step_count=40,
            deadline=None,
            phases=(Phase.reuse, Phase.generate, Phase.shrink),
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
