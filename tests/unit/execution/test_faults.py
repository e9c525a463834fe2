"""Whose rows make a model fail: each request is told apart from the others, in a bounded number of runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizers.tensors import Tensors
from workers.execution.faults import Bounds, ModelFault, RowsAtFault, RunResult, find_faults


class Fussy:
    """Doubles ``x``, and fails on a batch with a negative value. A run takes 1 ms for each row."""

    def __init__(self, probe_fails_from: float = math.inf) -> None:
        self.runs: list[int] = []
        self.probes = 0
        self._probe_fails_from = probe_fails_from

    def __call__(self, step: Tensors | None) -> RunResult:
        if step is None:
            self.probes += 1
            broken = self.probes >= self._probe_fails_from
            return RunResult(RuntimeError("device lost") if broken else {}, 1.0)
        values = step["x"]
        self.runs.append(len(values))
        if (values < 0).any():
            return RunResult(ValueError(f"cannot double {values.min():g}"), float(len(values)))
        return RunResult({"y": values * 2}, float(len(values)))


def jobs(*found: list[float]) -> list[Tensors]:
    return [{"x": np.array(values, np.float32)} for values in found]


def answers(model: Fussy, found: list[Tensors], bounds: Bounds | None = None) -> list[Tensors | Exception]:
    steps = find_faults(found, 1_000, ValueError("as a batch"), bounds or Bounds())
    try:
        step = next(steps)
        while True:
            step = steps.send(model(step))
    except StopIteration as done:
        result: list[Tensors | Exception] = done.value
        return result


def test_a_request_of_nothing_but_bad_rows_costs_a_bounded_number_of_runs() -> None:
    model = Fussy()
    (answer,) = answers(model, jobs([-1.0] * 256), Bounds(runs=32))
    assert len(model.runs) == 32
    assert model.probes == 2
    assert isinstance(answer, RowsAtFault)
    assert str(answer).startswith("rows 0, 1, 2, ")
    assert "of 256 (the search for them ended after 32 runs, before row " in str(answer)


def test_one_bad_row_of_many_is_found_within_the_bounds() -> None:
    model = Fussy()
    (answer,) = answers(model, jobs([1.0] * 200 + [-7.0] + [1.0] * 55))
    assert str(answer) == "rows 200 of 256: ValueError: as a batch"
    assert len(model.runs) == 16


def test_the_search_for_rows_ends_when_its_time_is_over() -> None:
    model = Fussy()
    (answer,) = answers(model, jobs([1.0] * 64 + [-1.0] * 64), Bounds(runs=1_000, ms=70.0))
    assert sum(model.runs) == 128
    assert str(answer).startswith("some of 128 rows (the search for them ended after 2 runs, before row 64)")


def test_all_requests_of_a_batch_share_the_bounds_of_the_search_for_rows() -> None:
    model = Fussy()
    found = answers(model, jobs(*[[-1.0] * 32] * 4), Bounds(runs=20))
    assert all(isinstance(answer, RowsAtFault) for answer in found)
    # To tell four requests apart takes six runs.
    assert len(model.runs) == 6 + 20


def test_beyond_the_bounds_requests_are_run_one_by_one_and_none_is_failed_for_want_of_runs() -> None:
    model = Fussy()
    found = answers(model, jobs(*[[-1.0] if n % 2 else [float(n)] for n in range(64)]), Bounds(runs=8))
    assert [isinstance(answer, Exception) for answer in found] == [bool(n % 2) for n in range(64)]
    assert len(model.runs) <= 8 + 64


def test_what_each_request_is_told_is_its_own_error() -> None:
    first, good, second = answers(Fussy(), jobs([-1.0], [2.0], [-3.0]))
    assert (str(first), str(second)) == ("cannot double -1", "cannot double -3")
    assert not isinstance(good, Exception)
    assert good["y"].tolist() == [4.0]


@pytest.mark.parametrize("probe", [1, 2], ids=["before the search", "after it"])
def test_a_model_that_fails_on_its_probe_blames_nobody(probe: int) -> None:
    model = Fussy(probe_fails_from=probe)
    with pytest.raises(ModelFault, match="device lost"):
        answers(model, jobs([1.0], [-1.0]))
    assert bool(model.runs) is (probe == 2)


def test_requests_that_cannot_be_joined_are_answered_each() -> None:
    found = [{"x": np.ones((1, size), np.float32)} for size in (5, 7, 5)]
    assert [a["y"].shape for a in answers(Fussy(), found) if not isinstance(a, Exception)] == [
        (1, 5),
        (1, 7),
        (1, 5),
    ]


@given(
    st.lists(st.lists(st.sampled_from([1.0, 2.0, -1.0]), min_size=1, max_size=12), min_size=2, max_size=20),
    st.integers(1, 40),
)
def test_exactly_the_requests_with_bad_rows_fail_whatever_the_bounds(
    found: list[list[float]], runs: int
) -> None:
    model = Fussy()
    result = answers(model, jobs(*found), Bounds(runs=runs))
    assert [isinstance(answer, Exception) for answer in result] == [min(values) < 0 for values in found]
    for values, answer in zip(found, result, strict=True):
        if not isinstance(answer, Exception):
            assert answer["y"].tolist() == [2 * value for value in values]
    assert len(model.runs) <= 2 * runs + len(found) + 1
