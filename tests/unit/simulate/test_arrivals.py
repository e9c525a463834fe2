"""Traces: the formats people have, what is wrong with a line, and arrivals of a known shape from a seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.simulate.arrivals import TraceError, bursty, read, read_arrivals, scaled


def arrivals(folder: Path, name: str, text: str) -> list[float]:
    path = folder / name
    path.write_bytes(text.encode())
    return read_arrivals(path)


CSVS = {
    "seconds": "timestamp,tokens\n10,1\n10.5,2\n12,3\n",
    "out of order": "tokens,time\n1,12\n2,10\n3,10.5\n",
    "milliseconds by name": "arrival_ms\n10000\n10500\n12000\n",
    "milliseconds by size": "t\n1700000000000\n1700000000500\n1700000002000\n",
    "capitals and other columns": "id,TIMESTAMP,note\n1,10,a\n2,10.5,\n3,12,b,more\n",
    "a byte order mark": "\ufefftimestamp\n10\n10.5\n12\n",
    "ISO": "ts\n2023-11-16T18:15:46\n2023-11-16T18:15:46.5\n2023-11-16T18:15:48\n",
    "ISO with seven digits": "ts\n2023-11-16 18:15:46\n2023-11-16 18:15:46.5000000\n2023-11-16 18:15:48\n",
    "ISO in UTC": "ts\n2023-11-16T18:15:46Z\n2023-11-16T18:15:46.5Z\n2023-11-16T18:15:48Z\n",
    "ISO with offsets": (
        "ts\n2023-11-16T18:15:46+00:00\n2023-11-16T20:15:46.5+02:00\n2023-11-16T13:15:48-05:00\n"
    ),
    "ISO with a fraction before an offset": (
        "ts\n2023-11-16T13:15:46.000-05:00\n2023-11-16T18:15:46.500+00:00\n2023-11-16T18:15:48Z\n"
    ),
}


@pytest.mark.parametrize("text", CSVS.values(), ids=CSVS)
def test_a_csv_is_read_as_seconds_from_its_first_arrival(text: str, tmp_path: Path) -> None:
    assert arrivals(tmp_path, "t.csv", text) == pytest.approx([0.0, 0.5, 2.0])


JSONLS = {
    "seconds": '{"time": 10}\n{"time": 10.5}\n\n{"time": 12}\n',
    "milliseconds": '{"timestamp": 10000}\n{"timestamp": 10500}\n{"timestamp": 12000}\n',
    "a byte order mark": '\ufeff{"time": 10}\n{"time": 10.5}\n{"time": 12}\n',
    "fractions are seconds": '{"timestamp": 10.0}\n{"timestamp": 10.5}\n{"timestamp": 12}\n',
    "ISO": '{"t": "2023-11-16T18:15:46Z"}\n{"t": "2023-11-16T18:15:46.5Z"}\n{"t": "2023-11-16T18:15:48Z"}\n',
}


@pytest.mark.parametrize("text", JSONLS.values(), ids=JSONLS)
@pytest.mark.parametrize("suffix", ["jsonl", "ndjson"])
def test_json_lines_are_read_as_seconds_from_the_first_arrival(
    text: str, suffix: str, tmp_path: Path
) -> None:
    assert arrivals(tmp_path, f"t.{suffix}", text) == pytest.approx([0.0, 0.5, 2.0])


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_a_trace_in_utf_16_says_how_to_save_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes("time\n1\n".encode("utf-16"))
    with pytest.raises(TraceError, match="save it as UTF-8"):
        read(tmp_path / name)


def test_the_other_columns_stay_with_their_arrival(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time,rows\n5,b\n3,a\n")
    assert [(a.at_s, a.columns["rows"]) for a in read(path)] == [(0.0, "a"), (2.0, "b")]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.csv", "", "no arrivals in it"),
        ("t.csv", "timestamp\n", "no arrivals in it"),
        ("t.jsonl", "\n\n", "no arrivals in it"),
        ("t.csv", "when,what\n1,2\n", "no time column; name one 'timestamp' (found: when, what)"),
        ("t.csv", "time\n1\nsoon\n", "t.csv:3: not a time; write seconds or an ISO 8601 date"),
        ("t.csv", "time\n1\nnan\n", "t.csv:3: not a time"),
        ("t.csv", "time\n1\ninf\n", "t.csv:3: not a time"),
        ("t.csv", "time\n1\n2023-99-01T00:00:00\n", "t.csv:3: not a time"),
        ("t.csv", "id,time\n1,2\n3\n", "t.csv:3: not a time"),
        ("t.csv", "time\n1" + "0" * 200_000 + "\n", "cannot be read: field larger than"),
        ("t.jsonl", '{"time": 1}\n{"time"\n', "t.jsonl:2: not JSON: "),
        ("t.jsonl", '{"time": 1}\n[2]\n', "t.jsonl:2: each line must be a JSON object"),
        ("t.jsonl", '{"time": 1}\n{"other": 2}\n', "t.jsonl:2: not a time"),
        ("t.jsonl", '{"time": 1}\n{"time": true}\n', "t.jsonl:2: not a time"),
        ("t.jsonl", '{"time": 1}\n{"time": [2]}\n', "t.jsonl:2: not a time"),
        ("t.jsonl", '{"time": 1}\n{"time": 1' + "0" * 400 + "}\n", "t.jsonl:2: not a time"),
    ],
)
def test_what_is_wrong_with_a_trace_is_told_by_file_and_line(
    name: str, text: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(TraceError) as caught:
        arrivals(tmp_path, name, text)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_a_file_that_cannot_be_read_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none\.csv: cannot be read"):
        read_arrivals(tmp_path / "none.csv")
    (tmp_path / "t.csv").write_bytes(b"time\n\xff\n")
    with pytest.raises(TraceError, match="cannot be read"):
        read_arrivals(tmp_path / "t.csv")


def test_scaling_changes_the_rate_and_keeps_the_shape() -> None:
    assert scaled([0.0, 1.0, 4.0], 2.0) == pytest.approx([0.0, 0.25, 1.0])
    assert scaled([0.0], 5.0) == [0.0]
    assert scaled([], 5.0) == []
    assert scaled([0.0, 0.0], 5.0) == [0.0, 0.0]


def test_a_seed_gives_the_same_arrivals_each_time() -> None:
    assert bursty(100.0, 5.0, seed=3) == bursty(100.0, 5.0, seed=3)
    assert bursty(100.0, 5.0, seed=3) != bursty(100.0, 5.0, seed=4)


def test_bursty_arrivals_have_the_mean_rate_and_three_times_the_density_in_one_second_of_five() -> None:
    times = bursty(200.0, 500.0, seed=1)
    assert times == sorted(times)
    assert times[0] >= 0 and times[-1] < 500.0
    assert len(times) / 500.0 == pytest.approx(200.0, rel=0.03)
    in_burst = sum(t % 5.0 >= 4.0 for t in times)
    quiet_per_s, burst_per_s = (len(times) - in_burst) / 400.0, in_burst / 100.0
    assert burst_per_s / quiet_per_s == pytest.approx(3.0, rel=0.05)
