"""Durations and sizes as people write them, and what is refused with a sentence instead of a guess."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from router.units import MAX_BUDGET_MS, budget_ms, duration_ms, format_ms, size_bytes


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        ("250us", 0.25),
        ("50ms", 50.0),
        ("1.5s", 1_500.0),
        ("2sec", 2_000.0),
        ("10min", 600_000.0),
        ("10 m", 600_000.0),
        (" 2h ", 7_200_000.0),
        ("1d", 86_400_000.0),
        (".5S", 500.0),
        ("0ms", 0.0),
        (2, 2_000.0),
        (0.05, 50.0),
        (timedelta(milliseconds=50), 50.0),
        (timedelta(days=2), 172_800_000.0),
    ],
)
def test_a_duration_is_read_in_every_way_people_write_it(value: Any, ms: float) -> None:
    assert duration_ms(value) == pytest.approx(ms)


@pytest.mark.parametrize(
    "value",
    [
        "50",
        "ms",
        "",
        "fifty ms",
        "50 parsecs",
        "-5ms",
        "1e3ms",
        "5ms 6ms",
        "1.ms",
        "nan",
        "9" * 400 + "s",
        -1,
        float("nan"),
        float("inf"),
        10**400,
        timedelta(seconds=-1),
        True,
        None,
        [],
        {"s": 1},
        b"50ms",
    ],
)
def test_what_is_no_duration_is_refused_in_one_short_sentence(value: Any) -> None:
    with pytest.raises(ValueError, match=r"is not a duration; ") as caught:
        duration_ms(value)
    assert len(str(caught.value)) < 150
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["0ms", 0, "31d", timedelta(days=30, microseconds=1), -1, "720.1h"])
def test_a_budget_is_above_zero_and_at_most_thirty_days(value: Any) -> None:
    with pytest.raises(ValueError, match=r"budget|duration"):
        budget_ms(value)


def test_the_largest_budget_is_thirty_days() -> None:
    assert budget_ms("30d") == MAX_BUDGET_MS == timedelta(days=30) / timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("512KiB", 512 * 1024),
        ("16MiB", 16 << 20),
        ("4GiB", 4 << 30),
        ("4gb", 4 * 10**9),
        ("1.5 kB", 1_500),
        ("10 b", 10),
        ("77", 77),
        ("9007199254740993", 9007199254740993),
        (0, 0),
        (77, 77),
    ],
)
def test_a_size_is_read_exactly(value: Any, size: int) -> None:
    assert size_bytes(value) == size


@pytest.mark.parametrize("value", ["4 GiBs", "much", "", "-1", "1e3", -1, 1.5, True, None, [], "ms"])
def test_what_is_no_size_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="is not a size; write 512KiB"):
        size_bytes(value)


@pytest.mark.parametrize("value", ["9" * 400, 10**400, "2000000000GiB"])
def test_a_size_beyond_any_machine_is_refused_in_one_short_sentence(value: Any) -> None:
    with pytest.raises(ValueError, match="out of range") as caught:
        size_bytes(value)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0.25, "0.25ms"),
        (12.345, "12.3ms"),
        (999.4, "999ms"),
        (999.9, "1s"),
        (1_000, "1s"),
        (59_999, "1min"),
        (90_000, "1.5min"),
        (3_599_990, "1h"),
        (7_200_000, "2h"),
        (86_400_000 * 1_234, "1234d"),
        (-1_500, "-1.5s"),
        (0, "0ms"),
    ],
)
def test_a_duration_is_shown_short_and_without_an_exponent(ms: float, text: str) -> None:
    assert format_ms(ms) == text


@pytest.mark.parametrize("text", ["1ms", "1s", "1min", "1h", "1d", "2.5h", "250ms"])
def test_what_is_shown_can_be_read_again(text: str) -> None:
    assert format_ms(duration_ms(text)) == text
