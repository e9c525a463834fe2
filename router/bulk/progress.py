"""How a run shows how far it is: a bar on a terminal, else a line every few seconds. On standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from router.bulk.run import BulkProgress, Report
from router.units import format_ms

_EVERY_S = 5.0
_AVERAGE_S = 30.0


class Rate:
    """Rows per second and the time left, over the last half minute or so."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._marks: list[tuple[float, int, float]] = []

    def add(self, tally: BulkProgress) -> None:
        now_s = self._clock()
        if not self._marks or now_s - self._marks[-1][0] >= 1.0:
            self._marks.append((now_s, tally.rows, tally.position))
            while len(self._marks) > 2 and now_s - self._marks[1][0] > _AVERAGE_S:
                self._marks.pop(0)

    def rows_per_s(self, tally: BulkProgress) -> float | None:
        if not self._marks:
            return None
        start_s, rows, _ = self._marks[0]
        spent_s = self._clock() - start_s
        return (tally.rows - rows) / spent_s if spent_s > 0 and tally.rows > rows else None

    def left_ms(self, tally: BulkProgress) -> float | None:
        """By rows where their number is known, else by the share of the file that is done."""
        rate = self.rows_per_s(tally)
        if rate is None:
            return None
        if tally.total is not None:
            return (tally.total - tally.rows) / rate * 1e3
        start_s, _, position = self._marks[0]
        gained = tally.position - position
        return (1 - tally.position) / gained * (self._clock() - start_s) * 1e3 if gained > 0 else None


def describe(tally: BulkProgress, rate: Rate) -> str:
    """One line: rows, rate, time left, failures."""
    of = f" of {tally.total:,}" if tally.total is not None else f" ({tally.position:.0%} of the file)"
    speed, left_ms = rate.rows_per_s(tally), rate.left_ms(tally)
    text = f"{tally.rows:,}{of} rows"
    if speed is not None:
        text += f", {speed:,.0f} rows/s"
    if left_ms is not None:
        text += f", {format_ms(left_ms)} left"
    return text + (f", {tally.failed:,} failed" if tally.failed else "")


@contextmanager
def reporter(
    stream: IO[str], title: str, clock: Callable[[], float], *, quiet: bool = False
) -> Iterator[Report]:
    """A function to tell of each chunk that is written."""
    rate = Rate(clock)
    if quiet:
        yield rate.add
    elif stream.isatty():
        with _bar(stream, title, rate) as report:
            yield report
    else:
        yield _lines(stream, rate, clock)


def _lines(stream: IO[str], rate: Rate, clock: Callable[[], float]) -> Report:
    said_s = clock()

    def report(tally: BulkProgress) -> None:
        nonlocal said_s
        rate.add(tally)
        if clock() - said_s >= _EVERY_S:
            said_s = clock()
            print(describe(tally, rate), file=stream, flush=True)

    return report


@contextmanager
def _bar(stream: IO[str], title: str, rate: Rate) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
    with Progress(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task(title, total=1.0, state="")

        def report(tally: BulkProgress) -> None:
            rate.add(tally)
            done = tally.rows / tally.total if tally.total else tally.position
            bar.update(task, completed=done, state=describe(tally, rate))

        yield report
