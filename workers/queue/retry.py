"""What happens to a job after a failed run or a lost lease, as a decision. Pure.

The settle and reap scripts repeat this arithmetic on the server; property tests run the same failures on
both queues and compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Backoff between failed runs: ``base_ms * 2 ** (failures - 1)``, at most ``cap_ms``, of which the
    upper half is drawn at random so that jobs that failed together do not return together."""

    base_ms: int = 200
    cap_ms: int = 30_000

    def __post_init__(self) -> None:
        if not 1 <= self.base_ms <= self.cap_ms:
            raise ValueError(
                f"retry: base_ms {self.base_ms} must be at least 1 and at most cap_ms {self.cap_ms}"
            )


@dataclass(frozen=True, slots=True)
class Retry:
    """Run it again, not before this moment. The deadline stays."""

    not_before_ms: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The job is dead. Its record keeps the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Expire:
    """The deadline has passed: the job is not tried again."""


Decision = Retry | GiveUp | Expire


def backoff_ms(policy: RetryPolicy, failures: int, draw: float) -> int:
    """The pause after the given number of failures (1 or more); ``draw`` is uniform in [0, 1)."""
    full = min(policy.cap_ms, policy.base_ms << min(failures - 1, 40))
    return max(1, floor(full * (0.5 + 0.5 * draw)))


def after_failure(
    policy: RetryPolicy, failures: int, max_attempts: int, deadline_ms: int, now_ms: int, draw: float
) -> Decision:
    """After a run that failed and may be tried again; ``failures`` includes this one."""
    if now_ms >= deadline_ms:
        return Expire()
    if failures >= max_attempts:
        return GiveUp(f"failed {failures} times")
    not_before_ms = now_ms + backoff_ms(policy, failures, draw)
    if not_before_ms >= deadline_ms:
        return GiveUp("the next try would start after the deadline")
    return Retry(not_before_ms)


def after_lost_lease(lost: int, max_lost: int, deadline_ms: int, now_ms: int) -> Decision:
    """After a lease ran out because its worker died or stalled; ``lost`` includes this one.

    A lost lease counts no attempt: the job is seldom to blame. It may run again at once, because its
    deadline does not wait; a job that loses too many is taken to kill its workers and given up on.
    """
    if now_ms >= deadline_ms:
        return Expire()
    if lost >= max_lost:
        return GiveUp(f"lost its lease {lost} times")
    return Retry(now_ms)
