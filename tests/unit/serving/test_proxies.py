"""A proxy in the environment is for other machines: this one is asked directly."""

from __future__ import annotations

import os
import socket
import urllib.request

import pytest

from router.serving.ray_start import ask_this_machine_directly


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "no_proxy"):
        for written in (name, name.upper()):
            monkeypatch.setenv(written, "")  # so that whatever is set below is put back
            monkeypatch.delenv(written)
    return monkeypatch


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "all_proxy", "grpc_proxy"])
def test_loopback_is_asked_without_the_proxy_and_other_hosts_with_it(
    environment: pytest.MonkeyPatch, name: str
) -> None:
    environment.setenv(name, "http://proxy.test:3128")
    ask_this_machine_directly()
    # Ray's processes call each other by the machine's own address.
    own = socket.gethostbyname(socket.gethostname())
    for host in ("127.0.0.1:8000", "localhost:8000", f"{own}:9000"):
        assert urllib.request.proxy_bypass(host)
    assert not urllib.request.proxy_bypass("router.example.com")
    assert "::1" in os.environ["NO_PROXY"].split(",")


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_hosts_that_the_user_has_named_stay(environment: pytest.MonkeyPatch, name: str) -> None:
    environment.setenv("http_proxy", "http://proxy.test:3128")
    environment.setenv(name, "inside.example.com, localhost")
    ask_this_machine_directly()
    assert os.environ["no_proxy"].startswith("inside.example.com,localhost,127.0.0.1,::1")
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"]


def test_a_wildcard_stays_one(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("http_proxy", "http://proxy.test:3128")
    environment.setenv("no_proxy", "*")
    ask_this_machine_directly()
    assert os.environ["no_proxy"] == "*"  # urllib takes it for every host only where it stands alone


def test_without_a_proxy_the_environment_stays_as_it_is(environment: pytest.MonkeyPatch) -> None:
    ask_this_machine_directly()
    assert "no_proxy" not in os.environ
