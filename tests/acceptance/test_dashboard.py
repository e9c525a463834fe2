"""What operators see: Ray's dashboard API and Prometheus endpoint, read from a real server."""

from __future__ import annotations

import time
from pathlib import Path

import httpx

from optimizers.examples.digits import test_split as real_images
from router import Client
from tests.acceptance.conftest import Served


def token() -> dict[str, str]:
    path = Path.home() / ".ray" / "auth_token"
    return {"Authorization": f"Bearer {path.read_text().strip()}"} if path.exists() else {}


def test_the_serve_page_shows_healthy_deployments_under_telling_names(served: Served) -> None:
    reply = httpx.get(f"{served.told('dashboard')}/api/serve/applications/", headers=token(), timeout=20)
    application = reply.json()["applications"]["hybrid-router"]
    assert application["status"] == "RUNNING"
    deployments = application["deployments"]
    assert {"router", "digits-online", "digits-batch"} <= set(deployments)
    assert {d["status"] for d in deployments.values()} == {"HEALTHY"}
    for deployment in deployments.values():
        assert [r["state"] for r in deployment["replicas"]] == ["RUNNING"]
        assert all(r["log_file_path"] for r in deployment["replicas"])


def test_prometheus_carries_what_the_router_counts(served: Served, client: Client) -> None:
    images, _ = real_images()
    client.infer("digits", images[:1], budget="2s")
    client.infer("digits", images[:1], budget="60s")
    wanted = {
        "ray_hybrid_requests_total": ('route="interactive"', 'path="online"', 'outcome="done"'),
        "ray_hybrid_deadlines_total": ('route="interactive"', 'met="true"'),
        "ray_hybrid_latency_ms_bucket": ('path="online"',),
        "ray_hybrid_online_batch_rows_bucket": ('model="digits"',),
        "ray_hybrid_batch_rows_total": ('model="digits"', 'variant="int8"', 'outcome="done"'),
        "ray_hybrid_queue_waiting_rows": ('model="digits"',),
        "ray_hybrid_queue_earliest_deadline_seconds": ('model="digits"',),
    }
    # Ray's agent exports about every ten seconds, and nothing tells when it has.
    missing: set[str] = set(wanted)
    end = time.monotonic() + 60
    while missing and time.monotonic() < end:
        lines = httpx.get(served.told("metrics"), timeout=20).text.splitlines()
        for name in list(missing):
            found = [line for line in lines if line.startswith(name)]
            if any(all(tag in line for tag in wanted[name]) for line in found):
                missing.discard(name)
    assert not missing
