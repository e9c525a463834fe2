"""Batch workers that come with the work and go with it: a policy with ``workers: {min: 0, ...}``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from optimizers.examples.digits import test_split as real_images
from router import Client
from tests.acceptance.conftest import POLICY, Served, start, stop
from tests.acceptance.test_dashboard import token
from workers.queue.embedded import url_file
from workers.queue.redis.client import connect


@pytest.fixture(scope="module")
def sleeping(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose batch side has no worker until there is work."""
    folder = tmp_path_factory.mktemp("sleeping")
    text = POLICY.format(artifacts=artifacts)
    text = text.replace("workers: 1", "workers: {min: 0, max: 1, idle: 1s}").replace('"<= 2s"', '"<= 500ms"')
    (folder / "policy.yaml").write_text(text + "\nredis: {namespace: sleeping}\n")
    served = start(folder / "policy.yaml", folder, "--data", str(folder / "queue"))
    assert "ready in" in served.said, served.said
    yield served
    stop(served)


def workers(served: Served) -> int:
    reply = httpx.get(f"{served.told('dashboard')}/api/serve/applications/", headers=token(), timeout=20)
    return len(reply.json()["applications"]["hybrid-router"]["deployments"]["digits-batch"]["replicas"])


def until_none(served: Served) -> int:
    """The number of workers, when it has come to 0 or 30 s are over."""
    # Serve announces no scaling that a test could wait on.
    end, left = time.monotonic() + 30, 1
    while left and time.monotonic() < end:
        left = workers(served)
    return left


def test_a_job_that_no_worker_can_reach_in_time_is_answered_online(sleeping: Served) -> None:
    assert until_none(sleeping) == 0
    images, _ = real_images()
    with Client(sleeping.url) as client:
        before = client.stats("digits")["rescued"]
        # A worker takes longer than this to start.
        result = client.submit("digits", images[:3], budget="1500ms").result()
        after = client.stats("digits")["rescued"]
    assert (result.path, result.deadline_met) == ("batch", True)
    assert after == {**before, "met": before["met"] + 1}


def test_a_job_wakes_a_worker_which_is_gone_again_when_idle(sleeping: Served) -> None:
    assert "batch x0 to 1 (int8)" in sleeping.told("model digits")
    assert until_none(sleeping) == 0
    images, _ = real_images()
    with Client(sleeping.url) as client:
        result = client.submit("digits", images[:3], budget="60s").result()
    assert (result.path, result.variant, result.deadline_met) == ("batch", "int8", True)
    assert until_none(sleeping) == 0


def test_router_workers_and_scaling_keep_to_the_policys_namespace(sleeping: Served) -> None:
    images, _ = real_images()
    with Client(sleeping.url) as client:
        client.submit("digits", images[:1], budget="60s").result()

    folder = sleeping.told("queue").removeprefix("bundled server, data in ").partition(",")[0]

    async def keys() -> set[bytes]:
        redis = connect(url_file(folder))
        try:
            return {name.partition(b":")[0] for name in await redis.keys("*")}
        finally:
            await redis.aclose()

    assert asyncio.run(keys()) == {b"sleeping"}
