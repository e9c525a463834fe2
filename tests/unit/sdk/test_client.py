"""The SDK's two clients: what only they do, and that both do the same."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from typing import Any

import httpx
import numpy as np
import pytest

import router
from router import AsyncClient, Client
from router.sdk.errors import (
    DeadlineExceeded,
    HybridRouterError,
    ProtocolError,
    ResultPending,
    ServerUnavailable,
)
from router.sdk.jobs import AsyncJob, Job
from tests.unit.sdk.harness import Clock, FakeServer, async_client_of, client_of, pending, problem

IMAGE = np.full((2, 2), 3.0)


class Both:
    """One client of either kind, called alike."""

    def __init__(self, kind: str, server: FakeServer, clock: Clock, **settings: Any) -> None:
        self.clock = clock
        make = client_of if kind == "sync" else async_client_of
        self.client = make(server, clock, **settings)
        self._loop = asyncio.new_event_loop()

    def __call__(self, target: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        value = getattr(target, name)(*args, **kwargs)
        return self._loop.run_until_complete(value) if inspect.isawaitable(value) else value

    def close(self) -> None:
        self(self.client, "close")
        self._loop.close()


@pytest.fixture(params=["sync", "async"])
def both(request: pytest.FixtureRequest) -> Any:
    made: list[Both] = []

    def make(server: FakeServer, **settings: Any) -> Both:
        made.append(Both(request.param, server, Clock(), **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_infer_submit_and_the_rest_do_the_same_in_both_faces(both: Any) -> None:
    server = FakeServer(queue=True)
    call = both(server)
    assert call(call.client, "infer", "digits", IMAGE, "10s").output.argmax() == 3
    job = call(call.client, "submit", "digits", [IMAGE, IMAGE], "10min")
    assert job.id == "r1"
    assert job.id in repr(job)
    assert call(job, "state") == "done"
    assert call(job, "result").output.shape == (2, 10)
    again = call.client.job("r0")
    assert call(again, "result", timeout="1s").id == "r0"
    assert call(call.client.job("r0"), "cancel") is True
    assert call(call.client, "cancel", "r0") is True
    assert call(call.client, "ready") is True
    assert [m.name for m in call(call.client, "models")] == ["digits"]
    assert call(call.client, "model", "digits").versions == ("float32", "int8")


def test_pauses_are_taken_on_the_given_clock(both: Any) -> None:
    call = both(FakeServer(httpx.ConnectError("refused"), problem(503, headers={"retry-after": "3"})))
    call(call.client, "infer", "digits", IMAGE, "10s")
    assert call.clock.slept == [0.05, 3.0]


def test_a_job_is_waited_for_no_longer_than_asked(both: Any) -> None:
    call = both(FakeServer(*[pending() for _ in range(100)]))
    job = call(call.client, "submit", "digits", IMAGE, "1h")
    with pytest.raises(ResultPending):
        call(job, "result", timeout=0.5)
    assert sum(call.clock.slept) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("raised", "kind", "says"),
    [
        (httpx.ConnectError("refused"), ServerUnavailable, "cannot reach http://router.test: refused"),
        (httpx.ConnectTimeout(""), ServerUnavailable, "no connection in time"),
        (httpx.ReadError(""), ServerUnavailable, "ReadError"),
        (httpx.WriteError("broken pipe"), ServerUnavailable, "broken pipe"),
        (httpx.RemoteProtocolError("disconnected"), ServerUnavailable, "disconnected"),
        (httpx.ProxyError("no proxy"), ServerUnavailable, "no proxy"),
        (httpx.DecodingError("bad gzip"), ProtocolError, "cannot be decompressed"),
    ],
)
def test_no_exception_of_the_network_library_passes_through(
    both: Any, raised: Exception, kind: type[Exception], says: str
) -> None:
    call = both(FakeServer(*[raised] * 50))
    with pytest.raises(kind) as caught:
        call(call.client, "infer", "digits", IMAGE, "1s")
    assert says in str(caught.value)


@pytest.mark.parametrize("raised", [httpx.ReadTimeout, httpx.PoolTimeout, httpx.WriteTimeout])
def test_each_try_is_given_what_is_left_and_the_grace(
    both: Any, raised: type[httpx.TimeoutException]
) -> None:
    call = both(FakeServer(), grace="500ms")

    def silent(request: httpx.Request) -> httpx.Response:
        timeout = request.extensions["timeout"]
        assert timeout["read"] == timeout["write"] == timeout["pool"] == pytest.approx(2.5)
        assert timeout["connect"] == pytest.approx(2.5)
        call.clock.now += timeout["read"]
        raise raised("", request=request)

    server = FakeServer(silent)
    call.client._transport = httpx.MockTransport(server)
    with pytest.raises(DeadlineExceeded, match="2s is over"):
        call(call.client, "infer", "digits", IMAGE, "2s")


def test_calls_in_a_deadline_block_share_its_budget(both: Any) -> None:
    server = FakeServer(problem(429, headers={"retry-after": "1"}))
    call = both(server)
    with call.client.deadline("2s") as deadline:
        call(call.client, "infer", "digits", IMAGE)
        call(call.client, "infer", "digits", IMAGE, "10s")
        assert deadline.left_ms == pytest.approx(1_000)
        call.clock.now += 1.5
        with pytest.raises(DeadlineExceeded):
            call(call.client, "infer", "digits", IMAGE)
    assert [float(r.headers["latency-budget-ms"]) for r in server.posts] == [2_000, 1_000, 1_000]
    call(call.client, "infer", "digits", IMAGE)
    assert "latency-budget-ms" not in server.posts[-1].headers


def test_key_tenant_and_headers_go_with_every_request_and_never_into_a_repr(both: Any) -> None:
    server = FakeServer(queue=True)
    call = both(server, key="s3cret", tenant="acme", headers={"traceparent": "00-ab"})
    call(call.client, "infer", "digits", IMAGE, "10s")
    assert len(server.requests) == 3
    for request in server.requests:
        assert request.headers["authorization"] == "Bearer s3cret"
        assert request.headers["tenant"] == "acme"
        assert request.headers["traceparent"] == "00-ab"
    assert "s3cret" not in repr(call.client)
    assert "http://router.test" in repr(call.client)


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({}, "Bearer fr0m-env"),
        ({"key": "own"}, "Bearer own"),
        ({"key": "own\n"}, "Bearer own"),
        ({"key": "\ufeffown\r\n"}, "Bearer own"),
        ({"key": ""}, None),
        ({"headers": {"authorization": "Basic abc"}}, "Basic abc"),
        ({"headers": {"X-Api-Key": "other"}}, None),
    ],
)
def test_the_key_is_taken_from_the_environment_where_none_is_given(
    both: Any, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], sent: str | None
) -> None:
    monkeypatch.setenv("HYBRID_ROUTER_KEY", "fr0m-env\n")
    server = FakeServer()
    call = both(server, **settings)
    call(call.client, "ready")
    assert server.requests[0].headers.get("authorization") == sent
    assert "fr0m-env" not in repr(call.client)


def test_the_key_stands_in_no_error_and_no_log(both: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    for answer in (problem(401, "this API key is not known here"), httpx.ConnectError("refused")):
        call = both(FakeServer(*[answer] * 50), key="s3cret")
        with pytest.raises(HybridRouterError) as caught:
            call(call.client, "infer", "digits", IMAGE, "1s")
        assert "s3cret" not in f"{caught.value!r} {caught.value} {vars(caught.value)}"
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    "url",
    ["router:8000", "ftp://router", "http://", "http://h:port", "http://h/?q=1", "127.0.0.1:8000", ""],
)
def test_an_address_that_is_none_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(ValueError, match="is not a server's URL"):
        Client(url)


def test_a_prefix_and_a_literal_address_are_kept() -> None:
    server = FakeServer(httpx.Response(200))
    client = Client("http://[::1]:8000/edge/", transport=httpx.MockTransport(server))
    client.ready()
    assert str(server.requests[0].url) == "http://[::1]:8000/edge/v2/health/ready"
    assert repr(client) == "Client('http://[::1]:8000/edge')"
    client.close()


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="pass key=") as caught:
        Client("http://me:s3cret@router")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("bad", [{"key": "a\r\nb"}, {"tenant": "é"}, {"headers": {"X\n": "1"}}])
def test_what_cannot_be_a_header_is_refused_without_showing_it(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="only printable ASCII") as caught:
        Client("http://h", **bad)
    assert "a\r\nb" not in str(caught.value)


def test_a_budget_that_is_none_is_refused_before_anything_is_sent(both: Any) -> None:
    server = FakeServer()
    call = both(server)
    with pytest.raises(ValueError, match="at most 30d"):
        call(call.client, "infer", "digits", IMAGE, "60d")
    assert server.requests == []


def test_both_faces_have_the_same_calls_and_parameters() -> None:
    for one, twin in ((Client, AsyncClient), (Job, AsyncJob)):
        names = {n for n in vars(one) if not n.startswith("_")}
        assert names == {n for n in vars(twin) if not n.startswith("_")}
        for name in names:
            if callable(getattr(one, name)):
                mine, other = inspect.signature(getattr(one, name)), inspect.signature(getattr(twin, name))
                assert [(p.name, p.kind, p.default) for p in mine.parameters.values()] == [
                    (p.name, p.kind, p.default) for p in other.parameters.values()
                ]


def test_importing_the_sdk_imports_no_server_and_no_network_library() -> None:
    code = (
        "import sys; from router import Client, AsyncClient, DeadlineExceeded; "
        "heavy = {'ray', 'torch', 'redis', 'httpx', 'asyncio', 'rich', 'workers', 'onnxruntime'}; "
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_package_gives_its_public_names_and_no_other() -> None:
    for name in router.__all__:
        assert getattr(router, name).__name__ == name
        assert name in dir(router)
    with pytest.raises(AttributeError, match="Clint"):
        router.Clint  # noqa: B018
