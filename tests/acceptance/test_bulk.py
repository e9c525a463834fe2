"""Bulk files on a real server: killed and interrupted in the middle, run again, and right in the end."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orjson
import pytest

from optimizers.examples.digits import test_split as real_images
from router import Client
from tests.acceptance.conftest import Served

IMAGES, LABELS = real_images()
TIMES = 60
ROWS = TIMES * len(LABELS)


def command(served: Served, source: Path, results: Path, *options: str) -> list[str]:
    words = ["submit", "digits", str(source), "--budget", "10min", "--out", str(results), *options]
    return [sys.executable, "-m", "router.cli.main", *words, "--url", served.url]


def submit(served: Served, source: Path, results: Path, *options: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(served, source, results, *options), capture_output=True, text=True, timeout=300
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def stop_in_the_middle(served: Served, source: Path, results: Path, number: int) -> tuple[int, str]:
    """Start a run, wait until RESULTS has begun to grow, and send it a signal; exit code and last words."""
    before = lines_of(results)
    process = subprocess.Popen(
        [*command(served, source, results), "--rows-per-request", "32", "--concurrency", "4"],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while lines_of(results) <= before:
        assert process.poll() is None, "it ended before it was stopped"
        assert time.monotonic() < deadline, "no results came"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bulk") / "images.npy"
    np.save(path, np.concatenate([IMAGES] * TIMES))
    return path


def submitted(client: Client) -> int:
    return int(client.stats("digits")["queue"]["totals"]["submitted"])


def test_a_run_that_is_killed_twice_and_interrupted_gives_every_answer_once_and_in_order(
    served: Served, client: Client, source: Path, tmp_path: Path
) -> None:
    results = tmp_path / "labels.jsonl"
    before = _submitted_by_now(client)
    for number in (signal.SIGKILL, signal.SIGKILL):
        code, _ = stop_in_the_middle(served, source, results, number)
        assert code == -number
    code, said = stop_in_the_middle(served, source, results, signal.SIGINT)
    assert code == 130
    assert "Run the same command again to go on." in said
    done = submit(served, source, results, "--rows-per-request", "32", "--concurrency", "4", "--json")
    assert done.returncode == 0, done.stderr
    told = orjson.loads(done.stdout)
    assert (told["rows"], told["failed"]) == (ROWS, 0)
    assert told["resumed_at"] > 0
    rows = [orjson.loads(line) for line in results.read_bytes().splitlines()]
    assert [row["row"] for row in rows] == list(range(ROWS))
    labels = np.array([row["outputs"]["label"] for row in rows]).reshape(TIMES, -1)
    assert (labels == LABELS).mean() > 0.96
    assert (labels == labels[0]).all()  # the same image, the same answer, wherever it was interrupted
    assert {row["variant"] for row in rows} == {"int8"}
    assert {p.name for p in tmp_path.iterdir()} == {"labels.jsonl"}
    _until_counted(client, before + -(-ROWS // 32))


def _until_counted(client: Client, expected: int) -> None:
    """The server has taken each request once."""
    deadline = time.monotonic() + 30
    while submitted(client) < expected and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _submitted_by_now(client) == expected  # and no more of them come


def _submitted_by_now(client: Client) -> int:
    """The counts are refreshed twice a second: those of a second ago are in them."""
    time.sleep(1.0)
    return submitted(client)


@pytest.mark.parametrize("name", ["labels.npy", "labels.csv", "labels.parquet"])
def test_labels_come_back_in_every_format(served: Served, tmp_path: Path, name: str) -> None:
    flat = IMAGES[:200].reshape(200, -1)
    source = tmp_path / "images.csv"
    np.savetxt(source, flat, delimiter=",")
    done = submit(served, source, tmp_path / name, "--output", "label", "--quiet")
    assert done.returncode == 0, done.stderr
    if name.endswith(".npy"):
        labels = np.load(tmp_path / name)
    elif name.endswith(".csv"):
        labels = np.loadtxt(tmp_path / name, delimiter=",", skiprows=1, usecols=2).astype(int)
    else:
        import pyarrow.parquet as pq

        labels = np.array(pq.read_table(tmp_path / name).column("label").to_pylist())
    assert (labels.ravel() == LABELS[:200]).mean() > 0.95


def test_rows_that_do_not_fit_are_set_apart_and_the_exit_code_says_so(served: Served, tmp_path: Path) -> None:
    source, results = tmp_path / "images.jsonl", tmp_path / "labels.jsonl"
    lines = [orjson.dumps(image.tolist()) for image in IMAGES[:100]]
    lines[17], lines[60] = b"[1, 2, 3]", b"oops"
    source.write_bytes(b"\n".join(lines))
    done = submit(served, source, results)
    assert done.returncode == 3, done.stderr
    failed = [orjson.loads(line) for line in Path(f"{results}.failed.jsonl").read_bytes().splitlines()]
    assert [row["row"] for row in failed] == [17, 60]
    assert lines_of(results) == 98


def cli(served: Served, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "router.cli.main", *words, "--url", served.url],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_other_commands_speak_to_a_real_server(served: Served, client: Client, tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", IMAGES[0])
    asked = cli(served, "infer", "digits", f"@{tmp_path / 'image.npy'}", "--budget", "2s", "--json")
    assert asked.returncode == 0, asked.stderr
    assert np.ravel(orjson.loads(asked.stdout)["outputs"]["label"])[0] == LABELS[0]
    job = client.submit("digits", IMAGES[1:2], budget="10min")
    ended = cli(served, "result", job.id, "--wait", "20s", "--json")
    assert orjson.loads(ended.stdout)["state"] == "done", ended.stderr
    status = cli(served, "status", "--json")
    told = orjson.loads(status.stdout)
    assert told["ready"] is True
    assert told["models"][0]["variants"] == ["float32", "int8", "tree"]
    assert told["models"][0]["stats"]["queue"]["totals"]["submitted"] >= 1
