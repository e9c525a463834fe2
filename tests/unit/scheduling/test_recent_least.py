"""The least of what was seen lately: kept long enough to be of use, and forgotten when it no longer holds."""

from __future__ import annotations

from router.scheduling.recent_least import RecentLeast


def test_the_start_holds_until_anything_is_seen_and_then_the_least_does() -> None:
    least = RecentLeast(10.0)
    assert least.value == 10.0
    for value in (30.0, 20.0, 25.0):
        least.add(value)
    assert least.value == 20.0


def test_the_least_is_kept_for_a_window_and_forgotten_after_two() -> None:
    least = RecentLeast(10.0)
    least.add(1.0)
    for _ in range(64):
        least.add(7.0)
    assert least.value == 1.0
    for _ in range(64):
        least.add(7.0)
    assert least.value == 7.0
