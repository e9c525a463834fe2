"""What becomes of a job after a failure: a table."""

from __future__ import annotations

import pytest

from workers.queue.retry import (
    Decision,
    Expire,
    GiveUp,
    Retry,
    RetryPolicy,
    after_failure,
    after_lost_lease,
    backoff_ms,
)

POLICY = RetryPolicy(base_ms=100, cap_ms=1000)


@pytest.mark.parametrize(
    ("failures", "draw", "pause_ms"),
    [
        (1, 0.0, 50),
        (1, 0.999, 99),
        (2, 0.0, 100),
        (3, 0.5, 300),
        (5, 0.0, 500),
        (60, 0.999, 999),
        (10_000, 0.0, 500),
    ],
)
def test_backoff_doubles_up_to_its_cap_and_the_upper_half_is_jitter(
    failures: int, draw: float, pause_ms: int
) -> None:
    assert backoff_ms(POLICY, failures, draw) == pause_ms


def test_backoff_is_never_nothing() -> None:
    assert backoff_ms(RetryPolicy(1, 1), 1, 0.0) == 1


@pytest.mark.parametrize(
    ("failures", "max_attempts", "deadline_ms", "decision"),
    [
        (1, 3, 10_000, Retry(1050)),
        (2, 3, 10_000, Retry(1100)),
        (3, 3, 10_000, GiveUp("failed 3 times")),
        (1, 1, 10_000, GiveUp("failed 1 times")),
        (1, 3, 1051, Retry(1050)),
        (1, 3, 1050, GiveUp("the next try would start after the deadline")),
        (1, 3, 1000, Expire()),
        (3, 3, 999, Expire()),
    ],
)
def test_after_a_failure(failures: int, max_attempts: int, deadline_ms: int, decision: Decision) -> None:
    assert after_failure(POLICY, failures, max_attempts, deadline_ms, 1000, 0.0) == decision


@pytest.mark.parametrize(
    ("lost", "deadline_ms", "decision"),
    [
        (1, 2000, Retry(1000)),
        (9, 2000, Retry(1000)),
        (10, 2000, GiveUp("lost its lease 10 times")),
        (1, 1000, Expire()),
    ],
)
def test_after_a_lost_lease_it_may_run_at_once(lost: int, deadline_ms: int, decision: Decision) -> None:
    assert after_lost_lease(lost, 10, deadline_ms, 1000) == decision


@pytest.mark.parametrize(("base_ms", "cap_ms"), [(0, 10), (11, 10), (-1, -1)])
def test_a_policy_that_makes_no_sense_is_refused(base_ms: int, cap_ms: int) -> None:
    with pytest.raises(ValueError, match="base_ms"):
        RetryPolicy(base_ms, cap_ms)
