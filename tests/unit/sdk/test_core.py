"""The SDK's core, driven by hand: what it sends, how often, how long it waits, and what it raises."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from router.sdk.deadline import Limit
from router.sdk.effects import Options, Send
from router.sdk.errors import (
    DeadlineExceeded,
    Forbidden,
    HybridRouterError,
    InvalidRequest,
    JobFailed,
    ModelNotFound,
    ProtocolError,
    Rejected,
    ServerUnavailable,
    Unauthenticated,
    Unauthorized,
)
from router.sdk.responses import NoResponse
from tests.unit.sdk.harness import ONE, Bench, bare, problem


def refused() -> httpx.ConnectError:
    return httpx.ConnectError("connection refused")


def test_the_models_inputs_are_asked_for_once() -> None:
    bench = Bench()
    assert bench.infer().output.argmax() == 3
    bench.infer()
    assert [r.method for r in bench.server.requests] == ["GET", "POST", "POST"]


def test_the_answer_tells_its_route_and_times() -> None:
    result = Bench(latency_s=0.004).infer("1s")
    assert (result.route, result.path, result.variant) == ("interactive", "online", "int8")
    assert (result.predicted_ms, result.queued_ms, result.deadline_met) == (3.5, 0.25, True)
    assert result.latency_ms == pytest.approx(8.0)


def test_a_variant_is_pinned_in_the_path_and_a_name_is_quoted() -> None:
    bench = Bench()
    bench.infer(variant="int8/x")
    assert bench.server.posts[0].url.raw_path == b"/v2/models/digits/versions/int8%2Fx/infer"


def test_retries_keep_the_idempotency_key_and_shrink_the_budget() -> None:
    bench = Bench(refused(), httpx.ReadError("reset"), bare(503), bare(404))
    assert bench.infer("1s").output.argmax() == 3
    keys = {r.headers["idempotency-key"] for r in bench.server.posts}
    assert len(keys) == 1
    assert len(bench.budgets) == 5
    assert bench.budgets == sorted(bench.budgets, reverse=True)
    assert len(set(bench.budgets)) == 5
    assert bench.clock.slept == pytest.approx([0.05, 0.1, 0.2, 0.4])


def test_each_logical_call_has_its_own_key_unless_the_caller_gives_one() -> None:
    bench = Bench()
    bench.infer()
    bench.infer()
    bench.infer(idempotency_key="mine")
    keys = [r.headers["idempotency-key"] for r in bench.server.posts]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


def test_jitter_shortens_a_pause_by_up_to_a_half() -> None:
    bench = Bench(refused(), jitter=1.0)
    bench.infer("1s")
    assert bench.clock.slept == pytest.approx([0.025])


def test_retries_never_pass_the_budget() -> None:
    bench = Bench(*[refused() for _ in range(100)])
    start = bench.clock.now
    with pytest.raises(ServerUnavailable, match=r"cannot reach http://router\.test: connection refused"):
        bench.infer("2s")
    assert bench.clock.now - start < 2.0
    assert len(bench.server.posts) == 6


def test_a_server_that_stays_away_is_given_up_on_though_the_budget_is_long() -> None:
    bench = Bench(*[refused() for _ in range(100)])
    start = bench.clock.now
    with pytest.raises(ServerUnavailable, match="tried"):
        bench.infer("2h")
    assert 25 < bench.clock.now - start <= 31


def test_retry_after_is_obeyed_within_the_budget() -> None:
    bench = Bench(problem(429, headers={"retry-after": "2"}))
    bench.infer("10s")
    assert bench.clock.slept == [2.0]


def test_the_exact_retry_after_wins_and_is_not_undercut_by_jitter() -> None:
    bench = Bench(problem(503, headers={"retry-after": "1", "retry-after-ms": "40"}), jitter=1.0)
    bench.infer("200ms")
    assert bench.clock.slept == pytest.approx([0.044])


def test_a_date_in_retry_after_is_measured_by_the_servers_own_clock() -> None:
    headers = {"retry-after": "Wed, 21 Oct 2015 07:28:03 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}
    bench = Bench(problem(503, headers=headers))
    bench.infer("10s")
    assert bench.clock.slept == [3.0]


def test_a_retry_after_beyond_the_budget_is_raised_at_once_with_the_reason() -> None:
    bench = Bench(problem(429, "predicted to miss by 3 ms", headers={"retry-after": "2"}))
    with pytest.raises(Rejected, match="predicted to miss by 3 ms") as caught:
        bench.infer("500ms")
    assert caught.value.retry_after_s == 2.0
    assert caught.value.status == 429
    assert bench.clock.slept == []


def test_a_rejection_that_names_no_time_is_final() -> None:
    bench = Bench(problem(429))
    with pytest.raises(Rejected) as caught:
        bench.infer("10s")
    assert caught.value.retry_after_s is None
    assert len(bench.server.posts) == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (problem(400), InvalidRequest),
        (problem(401), Unauthenticated),
        (problem(403), Forbidden),
        (bare(401), Unauthenticated),
        (bare(403), Forbidden),
        (bare(413), InvalidRequest),
        (bare(429), Rejected),
        (problem(431), InvalidRequest),
        (problem(404), ModelNotFound),
        (problem(409), InvalidRequest),
        (problem(413), InvalidRequest),
        (problem(415), InvalidRequest),
        (problem(422), InvalidRequest),
        (problem(500), JobFailed),
        (problem(504), DeadlineExceeded),
        (bare(500), ProtocolError),
        (bare(302), ProtocolError),
        (bare(200), ProtocolError),
        (httpx.Response(202, json={}), ProtocolError),
    ],
)
def test_a_final_answer_is_its_own_error_after_one_try(
    answer: httpx.Response, kind: type[HybridRouterError]
) -> None:
    bench = Bench(answer)
    with pytest.raises(kind) as caught:
        bench.infer("10s")
    assert type(caught.value) is kind
    assert len(bench.server.posts) == 1
    assert ("because" in str(caught.value)) == ("problem" in answer.headers.get("content-type", ""))


def test_a_page_from_another_server_is_named_when_the_time_for_retries_is_over() -> None:
    bench = Bench(*[bare(404) for _ in range(50)])
    with pytest.raises(ServerUnavailable, match="404 with text/html") as caught:
        bench.infer("1s")
    assert caught.value.status == 404


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (bare(413), r"413 \(the request is larger than it takes\) with text/html"),
        (bare(431), "headers are larger"),
        (
            httpx.Response(308, headers={"location": "https://router.test/"}),
            "moved to 'https://router.test/'",
        ),
    ],
)
def test_what_a_proxy_says_by_itself_is_told_in_words(answer: httpx.Response, says: str) -> None:
    with pytest.raises(HybridRouterError, match=says):
        Bench(answer).infer("10s")


def test_a_body_that_did_not_come_through_in_time_is_sent_again() -> None:
    bench = Bench(problem(408))
    assert bench.infer("10s").output.argmax() == 3
    with pytest.raises(ServerUnavailable, match="because"):
        Bench(*[problem(408) for _ in range(50)]).infer("1s")


def test_steps_print_neither_the_key_nor_the_content() -> None:
    bench = Bench()
    bench.infer("1s", idempotency_key="k3y")
    (post,) = [step for step in bench.steps if isinstance(step, Send) and step.method == "POST"]
    assert (b"idempotency-key", b"k3y") in post.headers
    assert "k3y" not in repr(post)
    assert "image" not in repr(post)


def test_silence_past_the_budget_and_grace_is_a_deadline_exceeded() -> None:
    bench = Bench(httpx.ReadTimeout("silence"))
    start = bench.clock.now
    with pytest.raises(DeadlineExceeded, match="latency budget of 50ms is over"):
        bench.infer("50ms")
    assert bench.clock.now - start == pytest.approx(1.05)


def test_silence_without_a_budget_is_an_unavailable_server() -> None:
    bench = Bench(httpx.ReadTimeout("nothing came"))
    with pytest.raises(ServerUnavailable, match="no answer"):
        bench.infer(None)
    assert "latency-budget-ms" not in bench.server.posts[0].headers


def test_a_deadline_that_is_over_sends_nothing() -> None:
    bench = Bench()
    with pytest.raises(DeadlineExceeded, match="before the request was sent"):
        bench.drive(bench.core.infer("digits", ONE, Limit(990.0, 999.0, 1_000.0), Options()))
    assert bench.server.requests == []


def test_after_an_invalid_request_the_model_is_looked_at_again() -> None:
    bench = Bench(problem(422, "wrong shape"))
    with pytest.raises(InvalidRequest, match="wrong shape"):
        bench.infer()
    bench.infer()
    assert len(bench.server.sent("GET", "/v2/models/")) == 2


def test_an_unknown_model_is_told_before_anything_is_sent_to_it() -> None:
    bench = Bench()
    with pytest.raises(ModelNotFound, match="no such model"):
        bench.drive(bench.core.infer("cats", ONE, bench.core.limit("1s"), Options()))
    assert bench.server.posts == []


def test_models_and_metadata() -> None:
    bench = Bench()
    (info,) = bench.drive(bench.core.models())
    assert (info.name, info.versions, info.inputs[0].shape) == ("digits", ("float32", "int8"), (-1, 2, 2))
    assert bench.drive(bench.core.model("digits")) == info


def test_ready_is_one_try_and_never_raises() -> None:
    bench = Bench()
    assert bench.drive(bench.core.ready()) is True
    flow = bench.core.ready()
    next(flow)
    with pytest.raises(StopIteration) as end:
        flow.send(NoResponse("refused"))
    assert end.value.value is False


@pytest.mark.parametrize("key", ["x" * 201, "a\nb", "ключ"])
def test_a_key_that_cannot_be_a_header_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequest, match="printable ASCII"):
        Bench().infer(idempotency_key=key)


def test_each_error_is_of_the_tree_and_of_its_builtin_kind() -> None:
    kinds: list[tuple[Callable[..., HybridRouterError], type[BaseException]]] = [
        (InvalidRequest, ValueError),
        (ModelNotFound, LookupError),
        (Unauthorized, PermissionError),
        (Unauthenticated, Unauthorized),
        (Forbidden, Unauthorized),
        (DeadlineExceeded, TimeoutError),
        (ServerUnavailable, ConnectionError),
    ]
    for kind, builtin in kinds:
        error = kind("why", status=418, problem={"title": "t"}, id="r1")
        assert isinstance(error, builtin)
        assert (str(error), error.status, error.problem["title"], error.id) == ("why", 418, "t", "r1")
