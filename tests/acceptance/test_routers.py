"""Two routers side by side on the same two online replicas: all is answered in time; one of them may die.

And each has a model of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.acceptance.conftest import Served, start, stop

POLICY = """
models:
  digits:
    artifacts: {artifacts}
    online: {{variants: [float32], replicas: 2, max_batch: 32}}
  inside: {{artifacts: {artifacts}, online: {{variants: [float32], in_router: true, max_batch: 32}}}}
routes: [{{name: interactive, to: online}}]
"""
BUDGET_MS = 1_000
REQUEST = {
    "parameters": {"latency_budget_ms": BUDGET_MS},
    "inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.0] * 64}],
}


@pytest.fixture(scope="module")
def side_by_side(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("routers")
    (folder / "policy.yaml").write_text(POLICY.format(artifacts=artifacts))
    running = start(folder / "policy.yaml", folder, "--routers", "2")
    assert "ready in" in running.said, running.said
    yield running
    stop(running)


def replicas(served: Served, deployment: str) -> list[psutil.Process]:
    """The processes of a deployment; Ray writes its name where the command line was."""
    name = f"ServeReplica:hybrid-router:{deployment}"
    return [p for p in served.processes() if name in " ".join(p.cmdline())]


async def steadily(served: Served, rate_per_s: float, seconds: float) -> list[httpx.Response | None]:
    """Open loop: each request at its time, whatever has become of those before it. None: cut off."""

    async def ask() -> httpx.Response | None:
        try:
            return await client.post("/v2/models/digits/infer", json=REQUEST)
        except httpx.TransportError:
            return None

    async with httpx.AsyncClient(base_url=served.url, timeout=20) as client:
        begun, tasks = time.monotonic(), []
        for number in range(int(rate_per_s * seconds)):
            await asyncio.sleep(max(0.0, begun + number / rate_per_s - time.monotonic()))
            tasks.append(asyncio.create_task(ask()))
        return await asyncio.gather(*tasks)


async def test_all_is_answered_in_time_by_two_routers_that_share_the_replicas(side_by_side: Served) -> None:
    assert len(replicas(side_by_side, "router")) == 2
    assert len(replicas(side_by_side, "digits-online")) == 2
    before = [p.cpu_times().user for p in replicas(side_by_side, "router")]
    answers = await steadily(side_by_side, rate_per_s=100.0, seconds=6.0)
    spent = [p.cpu_times().user - t for p, t in zip(replicas(side_by_side, "router"), before, strict=True)]
    good = [a for a in answers if a is not None]
    assert [a.status_code for a in good] == [200] * 600, [a.text for a in good if a.status_code != 200][:3]
    assert sum(a.headers["Deadline-Met"] == "true" for a in good) >= 0.99 * len(good)
    # Nobody is promised what only an empty replica could do, nor refused for what is not there.
    assert all(0.0 < float(a.headers["Predicted-Ms"]) <= BUDGET_MS for a in good)
    assert min(spent) > 0.05 * sum(spent), spent


async def test_a_model_in_the_router_needs_no_replica_and_answers_as_one_does(side_by_side: Served) -> None:
    assert "online in the router (float32)" in side_by_side.said
    assert replicas(side_by_side, "inside-online") == []
    async with httpx.AsyncClient(base_url=side_by_side.url, timeout=20) as client:
        pixels = {**REQUEST, "inputs": [{**REQUEST["inputs"][0], "data": [i % 16 / 16.0 for i in range(64)]}]}
        answers = [await client.post(f"/v2/models/{m}/infer", json=pixels) for m in ("inside", "digits")]
        mine, theirs = (answer.json()["outputs"] for answer in answers)
        assert [x["name"] for x in mine] == [x["name"] for x in theirs]
        for a, b in zip(mine, theirs, strict=True):
            assert a["data"] == pytest.approx(b["data"], rel=1e-4, abs=1e-5)
        told = [await client.post("/v2/models/inside/infer", json=REQUEST) for _ in range(50)]
    assert [answer.status_code for answer in told] == [200] * 50
    assert sum(answer.headers["Deadline-Met"] == "true" for answer in told) >= 49


async def test_while_one_replica_stands_still_the_other_answers(side_by_side: Served) -> None:
    load = asyncio.create_task(steadily(side_by_side, rate_per_s=50.0, seconds=6.0))
    await asyncio.sleep(1.5)
    stopped = replicas(side_by_side, "digits-online")[0]
    stopped.suspend()
    try:
        await asyncio.sleep(3.0)
    finally:
        stopped.resume()
    answers = await load
    fine = [a is not None and a.status_code == 200 for a in answers]
    in_time = [a is not None and a.headers.get("Deadline-Met") == "true" for a in answers]
    assert all(a is not None and a.elapsed.total_seconds() < BUDGET_MS / 1_000.0 + 0.5 for a in answers)
    assert sum(fine) >= 0.98 * len(answers)
    assert sum(in_time) >= 0.98 * len(answers)


async def test_a_router_that_is_killed_leaves_the_other_serving(side_by_side: Served) -> None:
    load = asyncio.create_task(steadily(side_by_side, rate_per_s=50.0, seconds=8.0))
    await asyncio.sleep(2.0)
    replicas(side_by_side, "router")[0].kill()
    answers = await load
    fine = [a is not None and a.status_code == 200 for a in answers]
    # What was with the dead one is cut off; after a moment all goes to the other, and then to both again.
    assert sum(fine) >= 0.9 * len(answers)
    assert all(fine[-150:])
    assert all(fine[:50])
