"""How many workers a queue needs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from workers.batch.autoscale import UrlNotToBeShown, autoscaling, workers_needed
from workers.queue.contract import QueueStats
from workers.queue.retry import RetryPolicy
from workers.queue.settings import QueueSettings, settings_from

STATS = QueueStats(
    now_ms=0,
    jobs=100,
    rows=1000,
    bytes=0,
    waiting_jobs=100,
    waiting_rows=1000,
    delayed_jobs=0,
    leased_jobs=0,
    dead_letters=0,
    earliest_deadline_ms=10_000,
    rows_per_s=None,
    totals={},
)


@pytest.mark.parametrize(
    ("rows", "deadline_ms", "rows_per_s", "needed"),
    [
        (1000, 10_000, 125.0, 1),  # 10 s at 80% of 125 rows/s: 1000 rows
        (1001, 10_000, 125.0, 2),
        (1000, 1_000, 125.0, 10),
        (1000, -5_000, 125.0, 10),  # already late: planned as one second
        (1000, 3_600_000, 125.0, 1),  # due in an hour, worked off within the horizon
        (100_000, 3_600_000, 125.0, 34),
        (1, 10_000, 1e9, 1),
    ],
)
def test_backlog_over_throughput_against_the_deadline(
    rows: int, deadline_ms: int, rows_per_s: float, needed: int
) -> None:
    stats = replace(STATS, rows=rows, waiting_rows=rows, earliest_deadline_ms=deadline_ms)
    assert workers_needed(stats, rows_per_s, 1) == needed


def test_nothing_to_do_needs_nobody() -> None:
    assert workers_needed(replace(STATS, jobs=0, rows=0, waiting_rows=0), 100.0, 3) == 0


def test_work_that_is_only_running_keeps_who_runs_it() -> None:
    assert workers_needed(replace(STATS, waiting_rows=0), 1.0, 3) == 3
    assert workers_needed(replace(STATS, waiting_rows=0), 1.0, 0) == 1


def test_a_password_is_not_handed_to_what_serve_shows() -> None:
    with pytest.raises(UrlNotToBeShown, match="file:") as refused:
        autoscaling("redis://:secret@host:6379/0", "m", 1.0, min_workers=0, max_workers=1)
    assert "secret" not in str(refused.value)


def test_settings_come_from_plain_values() -> None:
    settings = settings_from({"max_jobs": 5, "retry": {"base_ms": 1, "cap_ms": 2}})
    assert settings == QueueSettings(max_jobs=5, retry=RetryPolicy(1, 2))
    with pytest.raises(TypeError):
        settings_from({"no_such": 1})


@pytest.mark.parametrize(
    "wrong",
    [{"max_jobs": 0}, {"keep_ms": 0}, {"suspect_after": 11}, {"weights": {"t": 0.0}}, {"tenant_jobs": 0}],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="queue settings"):
        settings_from(wrong)
