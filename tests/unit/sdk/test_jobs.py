"""Requests that are answered later, driven by hand: polls, waits, states and ends."""

from __future__ import annotations

import httpx
import orjson
import pytest

from router.sdk.effects import Options, Ticket
from router.sdk.errors import (
    DeadlineExceeded,
    HybridRouterError,
    JobCancelled,
    JobFailed,
    JobUnknown,
    ProtocolError,
    ResultPending,
    Unauthenticated,
)
from tests.unit.sdk.harness import ONE, Bench, bare, pending, problem


def test_an_answer_that_comes_later_is_followed() -> None:
    bench = Bench(pending("a b"), pending("a b", "leased"), queue=True)
    bench.server._held["a%20b"] = bench.server._held["a b"] = _held()
    assert bench.infer("10min").id == "a b"
    assert [r.url.raw_path for r in bench.server.polls] == [b"/v2/requests/a%20b?wait=20.000"] * 2


def _held(*names: str) -> tuple[bytes, dict[str, str]]:
    outputs = [
        {"name": name, "datatype": "FP32", "shape": [1, 2], "data": [[1, 2]]} for name in names or ("scores",)
    ]
    return orjson.dumps({"outputs": outputs}), {"content-type": "application/json"}


def test_the_chosen_outputs_are_asked_for_where_the_answer_comes_later() -> None:
    bench = Bench(pending("r1"), pending("r1"), pending("r1"))
    bench.server._held["r1"] = _held("scores", "a&b")
    limit = bench.core.limit("10min")
    options = Options(outputs=("scores", "a&b"))
    ticket = bench.drive(bench.core.submit("digits", ONE, limit, options))
    bench.drive(bench.core.state(ticket))
    bench.drive(bench.core.result(ticket, None))
    state, *polls = [r.url.raw_path for r in bench.server.polls]
    assert state == b"/v2/requests/r1?output=scores&output=a%26b"
    assert {path.partition(b"&")[2] for path in polls} == {b"output=scores&output=a%26b"}
    other = bench.core.ticket("r1", ("scores",))
    bench.drive(bench.core.result(other, 5.0))
    assert bench.server.polls[-1].url.raw_path == b"/v2/requests/r1?wait=5.000&output=scores"


def test_outputs_that_were_not_chosen_are_left_out_and_a_missing_one_is_told() -> None:
    def answered() -> Bench:
        bench = Bench(pending("r1"))
        bench.server._held["r1"] = _held("scores", "extra")
        return bench

    assert list(answered().infer("10min", outputs=["extra"]).outputs) == ["extra"]
    with pytest.raises(ProtocolError, match="no output 'other'"):
        answered().infer("10min", outputs=["other"])


def test_the_location_names_the_request_where_the_body_does_not() -> None:
    answer = httpx.Response(202, json={}, headers={"location": "https://elsewhere.test/v2/requests/r9/"})
    bench = Bench(answer)
    bench.server._held["r9"] = _held()
    assert bench.infer("10min").id == "r9"


def test_a_poll_asks_for_no_more_than_is_left() -> None:
    bench = Bench(pending())
    bench.server._held["r1"] = _held()
    bench.infer("3s")
    wait_s = float(bench.server.polls[0].url.params["wait"])
    assert 3.0 < wait_s < 4.0  # the budget's rest and the grace


def test_a_server_that_does_not_hold_polls_is_not_asked_in_a_tight_loop() -> None:
    bench = Bench(*[pending() for _ in range(100)])
    with pytest.raises(DeadlineExceeded, match="r1 is not answered") as caught:
        bench.infer("10s")
    assert caught.value.id == "r1"
    assert len(bench.server.polls) < 20
    assert bench.clock.now - 1_000.0 == pytest.approx(11.0, abs=0.1)


def test_a_poll_that_is_refused_for_the_tenants_quota_is_asked_again_when_the_server_says() -> None:
    refusal = problem(429, "over quota", headers={"retry-after": "3"})
    bench = Bench(refusal, refusal)
    bench.server._held["r1"] = _held()
    ticket = Ticket(bench.core.limit("1min"), "r1")
    assert bench.drive(bench.core.result(ticket, None)).outputs["scores"].shape == (1, 2)
    assert bench.clock.slept == [3.0, 3.0]


def test_a_poll_that_is_refused_without_a_time_is_asked_again_ever_more_rarely() -> None:
    bench = Bench(*[problem(429, "over quota") for _ in range(30)])
    bench.server._held["r1"] = _held()
    ticket = Ticket(bench.core.limit("2min"), "r1")
    assert bench.drive(bench.core.result(ticket, None)).id == "r1"
    assert bench.clock.slept[:3] == pytest.approx([0.05, 0.1, 0.2])
    assert bench.clock.slept[-1] == 2.0
    assert len(bench.server.polls) == 31


@pytest.mark.parametrize(("budget", "timeout_s"), [("5s", None), (None, 5.0)])
def test_a_result_that_may_not_be_asked_for_in_time_is_pending_and_not_rejected(
    budget: str | None, timeout_s: float | None
) -> None:
    bench = Bench(problem(429, "over quota", headers={"retry-after": "60"}))
    ticket = Ticket(bench.core.limit(budget), "r1")
    with pytest.raises(ResultPending, match=r"r1 goes on.*over quota.*again by its id in 60 s") as caught:
        bench.drive(bench.core.result(ticket, timeout_s))
    assert (caught.value.id, caught.value.status) == ("r1", 429)
    assert bench.clock.slept == []


def test_a_lost_poll_is_asked_again() -> None:
    bench = Bench(pending(), httpx.ReadError("reset"), bare(503))
    bench.server._held["r1"] = _held()
    assert bench.infer("10s").output.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (problem(404), JobUnknown),
        (problem(410, state="cancelled"), JobCancelled),
        (problem(422, state="failed"), JobFailed),
        (problem(500, state="dead"), JobFailed),
        (problem(504, state="expired"), DeadlineExceeded),
        (problem(401), Unauthenticated),
    ],
)
def test_a_request_that_ended_otherwise_raises_its_end(
    answer: httpx.Response, kind: type[HybridRouterError]
) -> None:
    bench = Bench(pending(), answer)
    with pytest.raises(kind, match="because") as caught:
        bench.infer("10s")
    assert caught.value.id == "r1"


def test_without_a_budget_the_timeout_leaves_the_request_pending() -> None:
    bench = Bench(*[pending() for _ in range(100)])
    with pytest.raises(ResultPending, match="r1 has not ended 30s after it was sent") as caught:
        bench.infer(None)
    assert caught.value.id == "r1"


def submit(bench: Bench, budget: str | None = "10min") -> Ticket:
    return bench.drive(bench.core.submit("digits", ONE, bench.core.limit(budget), Options()))


def test_submit_prefers_not_to_wait_and_takes_an_answer_that_is_there() -> None:
    bench = Bench()
    ticket = submit(bench)
    assert bench.server.posts[0].headers["prefer"] == "respond-async"
    assert ticket.result is not None
    assert bench.drive(bench.core.state(ticket)) == "done"
    assert bench.drive(bench.core.cancel_ticket(ticket)) is False
    assert bench.drive(bench.core.result(ticket, None)) is ticket.result
    assert len(bench.server.requests) == 2


def test_a_wait_of_the_callers_own_ends_as_pending_and_the_request_goes_on() -> None:
    bench = Bench(*[pending() for _ in range(20)])
    ticket = submit(bench)
    start = bench.clock.now
    with pytest.raises(ResultPending):
        bench.drive(bench.core.result(ticket, 0.5))
    assert bench.clock.now - start == pytest.approx(0.5, abs=0.01)
    bench.server.script.clear()
    bench.server._held["r1"] = _held()
    assert bench.drive(bench.core.result(ticket, 0.0)).output.tolist() == [[1, 2]]


def test_a_result_is_asked_for_even_after_its_deadline() -> None:
    bench = Bench(pending())
    ticket = submit(bench, "10s")
    bench.clock.now += 3_600
    bench.server._held["r1"] = _held()
    assert bench.drive(bench.core.result(ticket, None)).id == "r1"
    assert bench.server.polls[0].url.params["wait"] == "1.000"  # the grace


def test_a_request_of_another_process_is_waited_for_as_long_as_the_server_says() -> None:
    bench = Bench(*[pending("r5") for _ in range(300)])
    bench.server._held["r5"] = _held()
    assert bench.drive(bench.core.result(bench.core.ticket("r5"), None)).id == "r5"
    assert bench.clock.now - 1_000 > 250


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (pending(state="leased"), "leased"),
        (problem(410, state="cancelled"), "cancelled"),
        (problem(504, state="expired"), "expired"),
        (problem(500, state="dead"), "dead"),
    ],
)
def test_the_state_is_told_without_raising(answer: httpx.Response, state: str) -> None:
    bench = Bench(answer)
    assert bench.drive(bench.core.state(bench.core.ticket("r1"))) == state


def test_the_state_of_an_unknown_request_raises() -> None:
    bench = Bench()
    with pytest.raises(JobUnknown):
        bench.drive(bench.core.state(bench.core.ticket("r1")))


@pytest.mark.parametrize(
    ("answer", "cancelled"),
    [
        (httpx.Response(200, json={"state": "cancelled"}), True),
        (httpx.Response(200, json={"state": "done"}), False),
        (httpx.Response(204), True),
        (problem(410), True),
        (problem(409), False),
    ],
)
def test_cancel_tells_whether_it_is_cancelled(answer: httpx.Response, cancelled: bool) -> None:
    bench = Bench(answer)
    assert bench.drive(bench.core.cancel("r1")) is cancelled
    assert bench.server.sent("DELETE")[0].url.path == "/v2/requests/r1"


def test_cancel_of_an_unknown_request_raises() -> None:
    bench = Bench(problem(404, "no request r1"))
    with pytest.raises(JobUnknown, match="no request r1"):
        bench.drive(bench.core.cancel("r1"))
