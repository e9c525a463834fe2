"""A policy that changes while requests come: no request may fail for it."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import pytest

from router import Client
from router.policy.reading import digest_of
from tests.acceptance.conftest import Served

IMAGE = np.zeros((1, 1, 8, 8), np.float32)
CLIENTS = 4
RELOADS = 20


class Load:
    """Clients that ask one after the other until they are stopped, and what they were answered."""

    def __init__(self, url: str) -> None:
        self._url, self._stop, self._pool = url, Event(), ThreadPoolExecutor(CLIENTS)
        self.answered: Counter[str] = Counter()
        self.failed: list[Exception] = []
        self._runs = [self._pool.submit(self._ask) for _ in range(CLIENTS)]

    def _ask(self) -> None:
        # No second tries: what fails once has failed.
        with Client(self._url, retry_for="0s") as client:
            while not self._stop.is_set():
                try:
                    self.answered[client.infer("digits", IMAGE, budget="20s").route] += 1
                except Exception as error:
                    self.failed.append(error)

    def end(self) -> None:
        self._stop.set()
        for run in self._runs:
            run.result()
        self._pool.shutdown()


@pytest.fixture
def load(served: Served, kept: str) -> Iterator[Load]:
    running = Load(served.url)
    try:
        yield running
    finally:
        running.end()


@pytest.fixture
def kept(policy: Path, served: Served) -> Iterator[str]:
    """The policy's text, which is in force again at the end."""
    text = policy.read_text()
    # So much time that only a lost request can fail: the machine may be busy.
    patient = text.replace('"<= 2s"', '"<= 25s"')
    policy.write_text(patient)
    until(served, lambda told: told["digest"] == digest_of(patient))
    try:
        yield patient
    finally:
        policy.write_text(text)
        until(served, lambda told: told["digest"] == digest_of(text) and told["state"] == "applied")


def until(served: Served, holds: Callable[[dict[str, Any]], bool], within_s: float = 60.0) -> dict[str, Any]:
    """What the server says of its policy, once it says so."""
    end = time.monotonic() + within_s
    with httpx.Client(base_url=served.url) as asking:
        while True:
            told: dict[str, Any] = {}
            # A connection that was kept open ends with the proxy that held it; a new one finds the next.
            with contextlib.suppress(httpx.TransportError):
                told = asking.get("/v2/policy").json()
            if told and holds(told):
                return told
            assert time.monotonic() < end, told
            Event().wait(0.02)


def test_twenty_changes_under_load_fail_no_request(
    served: Served, policy: Path, kept: str, load: Load
) -> None:
    for number in range(RELOADS):
        text = kept.replace("name: interactive", f"name: round-{number}")
        policy.write_text(text)
        until(served, lambda told, text=text: told["digest"] == digest_of(text))  # type: ignore[misc]
        before = load.answered[f"round-{number}"]
        end = time.monotonic() + 10.0
        while load.answered[f"round-{number}"] == before:
            assert time.monotonic() < end, "the new route is not taken"
    load.end()
    assert load.failed == []
    assert sum(load.answered.values()) > RELOADS


def test_a_broken_policy_is_refused_where_people_look_and_the_old_one_stays(
    served: Served, policy: Path, kept: str, load: Load
) -> None:
    broken = kept.replace("to: auto", "to: nowhere")
    policy.write_text(broken)
    told = until(served, lambda told: told["state"] == "refused")
    assert told["digest"] == digest_of(kept)
    assert told["pending"].keys() == {"digest", "since"}, "callers are not told what is in the file"
    assert told["pending"]["digest"] == digest_of(broken)
    load.end()
    assert load.failed == []


def test_a_change_of_the_replicas_themselves_fails_no_request(
    served: Served, policy: Path, kept: str, load: Load
) -> None:
    text, states = kept.replace("variants: [float32, int8, tree]", "variants: [float32, int8]"), set()

    def done(told: dict[str, Any]) -> bool:
        states.add(told["state"])
        return bool(told["digest"] == digest_of(text))

    policy.write_text(text)
    until(served, done)
    assert states <= {"applied", "needs redeploy"}, "a valid change raises no alarm"
    with Client(served.url) as client:
        assert client.infer("digits", IMAGE, budget="1s").variant in ("float32", "int8")
    load.end()
    assert load.failed == []
