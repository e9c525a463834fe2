"""Which requests make a model fail, and which of their rows: found by bisection, one run at a time. Pure.

:func:`find_faults` is a generator: it yields what to run next and is sent the result, so its caller may run
other work in between. Every request is separated from the others, however many runs that takes: none fails
for another's rows. The search for the rows at fault within a request stays within :class:`Bounds`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from optimizers import tensors
from optimizers.tensors import Tensors


class ModelFault(RuntimeError):
    """The model itself is broken, not the rows: it fails on a batch that it is known to take."""


class RowsAtFault(ValueError):
    """Some rows of a job make the model fail; the message begins ``rows 3, 17 of 256:``, and says so where
    the search for them was cut short."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long a search may take: ``runs`` to separate requests by bisection before each is run alone; and
    again ``runs``, or ``ms`` of the model's time, to find the rows at fault within them."""

    runs: int = 32
    ms: float = 5_000.0


DEFAULT_BOUNDS = Bounds()


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run: the outputs, or the error, and the time that it took."""

    answer: Tensors | Exception
    ms: float


#: What to run next: a batch, or (None) the model's own probe.
Steps = Generator[Tensors | None, RunResult, list[Tensors | Exception]]


def describe(error: BaseException) -> str:
    """An error as one line of text for a job's record."""
    return f"{type(error).__name__}: {error}"[:1000]


def find_faults(
    jobs: Sequence[Tensors], max_rows: int, error: Exception, bounds: Bounds = DEFAULT_BOUNDS
) -> Steps:
    """One answer for each of the ``jobs`` whose batch failed with ``error``: its outputs, or its own error.

    Raises :class:`ModelFault` when the probe fails, before or after the search: then no row is to blame.
    """
    yield from _check_model()
    answers: list[Tensors | Exception] = [error] * len(jobs)
    failed, runs = [range(len(jobs))], 0
    while failed:
        group = failed.pop()
        if len(group) == 1:
            continue
        size = -(-len(group) // 2) if runs < bounds.runs else 1
        for part in (group[at : at + size] for at in range(0, len(group), size)):
            runs += 1
            result = yield from _run([jobs[place] for place in part], max_rows)
            if isinstance(result.answer, Exception):
                answers[part[0]] = result.answer
                failed.append(part)
            else:
                rows = [tensors.rows_of(jobs[place]) for place in part]
                answers[part.start : part.stop] = tensors.split(result.answer, rows)
    search = _RowSearch(max_rows, bounds)
    for place, answer in enumerate(answers):
        if isinstance(answer, Exception):
            answers[place] = yield from search.blame(jobs[place], answer)
    yield from _check_model()
    return answers


def run_all(jobs: Sequence[Tensors], max_rows: int, bounds: Bounds = DEFAULT_BOUNDS) -> Steps:
    """One answer for each of the ``jobs``, run as one batch; where that fails, by :func:`find_faults`."""
    result = yield from _run(jobs, max_rows)
    if isinstance(result.answer, Exception):
        return (yield from find_faults(jobs, max_rows, result.answer, bounds))
    return list(tensors.split(result.answer, [tensors.rows_of(job) for job in jobs]))


def _check_model() -> Generator[None, RunResult, None]:
    result = yield None
    if isinstance(result.answer, Exception):
        raise ModelFault(
            f"the model fails on a row that it took before: {describe(result.answer)}"
        ) from result.answer


def _run(jobs: Sequence[Tensors], max_rows: int) -> Generator[Tensors, RunResult, RunResult]:
    """Run jobs as one batch, in pieces of ``max_rows``."""
    ms, pieces = 0.0, []
    try:
        batch = tensors.concat(jobs)
        rows = tensors.rows_of(batch)
        for start in range(0, rows, max_rows):
            result = yield _rows(batch, start, start + max_rows)
            ms += result.ms
            if isinstance(result.answer, Exception):
                return RunResult(result.answer, ms)
            pieces.append(result.answer)
        outputs = tensors.concat(pieces)
        tensors.split(outputs, [rows])
    except tensors.TensorError as error:
        return RunResult(error, ms)
    return RunResult(outputs, ms)


def _rows(batch: Tensors, start: int, stop: int) -> Tensors:
    return {name: array[start:stop] for name, array in batch.items()}


class _RowSearch:
    """Finds the rows at fault in one request after another, within the bounds of all of them together."""

    def __init__(self, max_rows: int, bounds: Bounds) -> None:
        self._max_rows, self._bounds = max_rows, bounds
        self._runs, self._ms = 0, 0.0

    def blame(self, job: Tensors, error: Exception) -> Generator[Tensors, RunResult, Exception]:
        """The error of a request that fails alone, with the rows that are at fault."""
        try:
            total = tensors.rows_of(job)
        except tensors.TensorError:
            return error
        at_fault: list[int] = []
        # From left to right, so that what is not decided when the search ends are the last rows.
        pending = _halves(range(total))
        while pending and self._runs < self._bounds.runs and self._ms < self._bounds.ms:
            part = pending.pop()
            result = yield from _run([_rows(job, part.start, part.stop)], self._max_rows)
            self._runs, self._ms = self._runs + 1, self._ms + result.ms
            if isinstance(result.answer, Exception):
                if len(part) == 1:
                    at_fault.append(part.start)
                pending += _halves(part)
        if not at_fault and not pending:
            return error
        which = f"rows {', '.join(map(str, at_fault))} of {total}" if at_fault else f"some of {total} rows"
        if pending:
            which += f" (the search for them ended after {self._runs} runs, before row {pending[-1].start})"
        return RowsAtFault(f"{which}: {describe(error)}")


def _halves(rows: range) -> list[range]:
    """Both halves, the second one first; none of a single row."""
    middle = (rows.start + rows.stop) // 2
    return [range(middle, rows.stop), range(rows.start, middle)] if len(rows) > 1 else []
