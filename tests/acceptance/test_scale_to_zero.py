"""Batch workers that come with the work and go with it: a policy with ``workers: {min: 0, ...}``."""

from __future__ import annotations

import time
from pathlib import Path

import httpx

from optimizers.examples.digits import test_split as real_images
from router import Client
from tests.acceptance.conftest import POLICY, Served, start, stop
from tests.acceptance.test_dashboard import token


def workers(served: Served) -> int:
    reply = httpx.get(f"{served.told('dashboard')}/api/serve/applications/", headers=token(), timeout=20)
    return len(reply.json()["applications"]["hybrid-router"]["deployments"]["digits-batch"]["replicas"])


def test_a_job_wakes_a_worker_which_is_gone_again_when_idle(artifacts: Path, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    text = POLICY.format(artifacts=artifacts)
    path.write_text(text.replace("workers: 1", "workers: {min: 0, max: 1, idle: 1s}"))
    served = start(path, tmp_path, "--data", "queue")
    try:
        assert "ready in" in served.said, served.said
        assert "batch x0 to 1 (int8)" in served.told("model digits")
        assert workers(served) == 0
        images, _ = real_images()
        with Client(served.url) as client:
            result = client.submit("digits", images[:3], budget="60s").result()
        assert (result.path, result.deadline_met) == ("batch", True)
        # Serve announces no scaling that a test could wait on.
        end = time.monotonic() + 30
        left = 1
        while left and time.monotonic() < end:
            left = workers(served)
        assert left == 0
    finally:
        stop(served)
