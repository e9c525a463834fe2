"""The plan that ``map`` and bulk files share: its window, its order, and how it finds the rows at fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from router.sdk.effects import Flow, Sleep
from router.sdk.errors import HybridRouterError, InvalidRequest, JobCancelled
from router.sdk.window import (
    END,
    Emit,
    Finish,
    OrderedPlan,
    Piece,
    Plan,
    Pull,
    StartWork,
    Together,
    Verdict,
    Work,
    by_halves,
)


class Numbers(OrderedPlan[Piece]):
    """Hands out each number's double."""

    def take(self) -> Plan[Piece | None]:
        item = yield Pull()
        return None if item is END else Piece(cast(Work[Any], item) if item % 10 else None)

    def hand_out(self, piece: Piece, outcome: Any) -> Plan[None]:
        yield Emit(outcome)


def steps_of(items: int, window: int) -> list[str]:
    """What a run asks for, in order; work that has begun carries its number."""
    plan, numbers, steps, answer = Numbers(window).run(), iter(range(1, items + 1)), [], None
    while True:
        try:
            step = plan.send(answer)
        except StopIteration:
            return steps
        answer = None
        if isinstance(step, Pull):
            answer = next(numbers, END)
        elif isinstance(step, StartWork):
            answer = step.work
            steps.append(f"start {step.work}")
        elif isinstance(step, Finish):
            answer = step.handle
        elif isinstance(step, Emit):
            steps.append(f"emit {step.value}")


def test_no_more_than_the_window_is_begun_before_the_oldest_is_handed_out() -> None:
    assert steps_of(4, window=2) == [
        *("start 1", "start 2", "emit 1", "start 3", "emit 2", "start 4", "emit 3", "emit 4")
    ]


def test_a_piece_without_work_keeps_its_place() -> None:
    assert steps_of(11, window=3)[-5:] == ["emit 8", "start 11", "emit 9", "emit None", "emit 11"]


def drive(work: Work[Any]) -> Any:
    """Run a piece of work, its requests one after the other."""
    answer: Any = None
    try:
        while True:
            step = work.send(answer)
            answer = [drive(flow) for flow in step.flows] if isinstance(step, Together) else None
    except StopIteration as end:
        return end.value


def sender(bad: set[int], sent: list[list[int]]) -> Callable[[list[int]], Flow[int]]:
    def send(rows: list[int]) -> Flow[int]:
        yield Sleep(0.0)
        sent.append(rows)
        if bad.intersection(rows):
            raise InvalidRequest("no", status=422)
        return sum(rows)

    return send


def halve(error: HybridRouterError, rows: list[int]) -> Verdict:
    return Verdict.HALVE


@pytest.mark.parametrize(
    ("bad", "answers"),
    [
        (set[int](), [[0, 1, 2, 3, 4, 5, 6]]),
        ({0}, [[0], [1, 2], [3, 4, 5, 6]]),
        ({2, 6}, [[0], [1], [2], [3, 4], [5], [6]]),
    ],
)
def test_rows_at_fault_are_found_by_halves_and_the_answers_are_in_order(
    bad: set[int], answers: list[list[int]]
) -> None:
    outcome = drive(by_halves([list(range(7))], sender(bad, []), halve))
    assert [rows for rows, _ in outcome] == answers
    assert {rows[0] for rows, answer in outcome if isinstance(answer, InvalidRequest)} == bad
    assert all(answer == sum(rows) for rows, answer in outcome if not isinstance(answer, InvalidRequest))


def test_an_error_that_is_the_answer_is_given_to_the_whole_part() -> None:
    sent: list[list[int]] = []
    outcome = drive(by_halves([[0, 1], [2, 3]], sender({2}, sent), lambda error, rows: Verdict.GIVE))
    assert sent == [[0, 1], [2, 3]]
    assert [type(answer) for _, answer in outcome] == [int, InvalidRequest]


def test_an_error_that_ends_the_work_is_raised() -> None:
    def cancelled(rows: list[int]) -> Flow[int]:
        yield Sleep(0.0)
        raise JobCancelled("gone")

    with pytest.raises(JobCancelled, match="gone"):
        drive(by_halves([[0, 1]], cancelled, lambda error, rows: Verdict.RAISE))


def test_halves_are_requests_that_may_run_together() -> None:
    work, flows = by_halves([[0, 1, 2, 3]], sender({0, 3}, []), halve), []
    step = work.send(None)
    while isinstance(step, Together):
        flows.append(len(step.flows))
        try:
            step = work.send([drive(flow) for flow in step.flows])
        except StopIteration:
            break
    assert flows == [1, 2, 4]
