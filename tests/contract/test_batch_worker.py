"""The batch worker as Ray Serve runs it: drains, is replaced when it dies, scales from zero and back."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import serve

from optimizers import artifact, runner
from optimizers.passes.distill_tree import DistillTree
from optimizers.pipeline import pipeline
from optimizers.pipeline.recipe import Latency, Recipe, Variant
from optimizers.tensors import TensorError, Tensors, pack, unpack
from tests.support.small_task import small_task
from workers.batch import autoscale
from workers.batch import deployment as batch
from workers.batch.settings import LoopSettings
from workers.execution.batch_model import ArtifactModel, BatchModel, VariantUnavailable
from workers.execution.work_limits import WorkLimit
from workers.queue.embedded import EmbeddedServer
from workers.queue.job import JobState, JobStatus, NewJob
from workers.queue.redis.queue import RedisQueue
from workers.queue.settings import settings_from

pytestmark = pytest.mark.slow

SETTINGS = {"keep_ms": 600_000}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    variants = (Variant("tree", (DistillTree(resampled=200),)), Variant("onnx"))
    recipe = Recipe("quarters", "none:none", variants, latency=Latency((1, 4, 16), 0.02))
    out = tmp_path_factory.mktemp("quarters")
    pipeline.run(recipe, out, task=small_task(), report=False)
    return out


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer.start(tmp_path_factory.mktemp("queue"), fsync="no") as running:
        yield running


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    root = str(Path(__file__).parents[2])
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=2,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )
    serve.start(proxy_location="Disabled")
    yield
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


def rows(count: int) -> Tensors:
    inputs: Tensors = small_task().test.inputs
    return {name: array[:count] for name, array in inputs.items()}


def jobs(prefix: str, count: int, **more: Any) -> list[NewJob]:
    all_rows = rows(count)
    return [
        NewJob(f"{prefix}{i}", pack({n: a[i : i + 1] for n, a in all_rows.items()}), 1, 120_000, **more)
        for i in range(count)
    ]


async def ended(queue: RedisQueue, ids: list[str]) -> dict[str, JobStatus]:
    found: dict[str, JobStatus] = {}
    while left := [i for i in ids if i not in found]:
        some = await queue.wait(left, 60)
        assert some, f"nothing ended of {left}"
        found |= {s.id: s for s in some}
    return found


def test_a_models_variants_are_loaded_when_needed_and_only_from_its_folder(artifacts: Path) -> None:
    model = ArtifactModel(str(artifacts), threads=1)
    assert model.load("tree").max_batch == 16
    assert model.check("tree", rows(3)) == 3
    with pytest.raises(TensorError):
        model.check("tree", {"nonsense": np.zeros((1, 1), np.float32)})
    model.probe("tree")
    for name in ("missing", "", "..", "../quarters/tree", "."):
        with pytest.raises(VariantUnavailable):
            model.load(name)
    model.close()


async def test_it_drains_with_the_variant_that_each_job_asks_for(
    cluster: None, server: EmbeddedServer, artifacts: Path
) -> None:
    app = batch.deployment("quarters", str(artifacts), "tree", server.url_file, queue_settings=SETTINGS)
    serve.run(app, name="drain", route_prefix=None)
    queue = RedisQueue.open(server.url, "quarters")
    plain, pinned = jobs("plain", 8), jobs("pinned", 8, variant="onnx")
    bad = NewJob("bad", b"not a message", 1, 120_000)
    await queue.submit([*plain, *pinned, bad])
    found = await ended(queue, [j.id for j in (*plain, *pinned, bad)])
    assert found["bad"].state is JobState.FAILED
    for prefix, variant in (("plain", "tree"), ("pinned", "onnx")):
        expected = runner.load(artifact.read(artifacts / variant)).run(rows(8))
        for i in range(8):
            status = found[f"{prefix}{i}"]
            assert (status.state, status.variant, status.met) == (JobState.DONE, variant, True)
            assert status.result is not None
            got, _ = unpack(status.result)
            for name, array in expected.items():
                np.testing.assert_allclose(got[name], array[i : i + 1], rtol=1e-4, atol=1e-5)
    await queue.close()


async def test_a_killed_worker_is_replaced_and_the_queue_goes_on(
    cluster: None, server: EmbeddedServer, artifacts: Path
) -> None:
    app = batch.deployment(
        "killed", str(artifacts), "tree", server.url_file, queue_settings=SETTINGS, lease_ms=1000
    )
    serve.run(app, name="killed", route_prefix=None)
    queue = RedisQueue.open(server.url, "killed")
    await queue.submit(jobs("before", 1))
    worker = (await ended(queue, ["before0"]))["before0"].worker
    assert worker is not None
    os.kill(int(worker.split(":")[1]), signal.SIGKILL)
    await queue.submit(jobs("after", 4))
    found = await asyncio.wait_for(ended(queue, [f"after{i}" for i in range(4)]), 30)
    assert {s.state for s in found.values()} == {JobState.DONE}
    assert {s.worker for s in found.values()} != {worker}
    await queue.close()


class Hanging(ArtifactModel):
    """Never returns from a batch with a value of 99; says which process it is in."""

    def run(self, variant: str, batch: Tensors) -> Tensors:
        if any((array == 99).any() for array in batch.values()):
            threading.Event().wait()
        return super().run(variant, batch)


class HangingWorker(batch.BatchWorker):
    @staticmethod
    def make_model(artifacts: str, threads: int) -> BatchModel:
        return Hanging(artifacts, threads)

    @staticmethod
    def make_settings(lease_ms: int, max_batch: int | None, hung_after_ms: float | None) -> LoopSettings:
        limit = WorkLimit(on_cpu_ms=10_000.0, blocked_ms=1_000.0)
        return LoopSettings(lease_ms, max_batch, watch_s=0.1, limit=lambda predicted_ms: limit)


async def test_a_worker_whose_model_hangs_is_replaced_and_the_job_ends_as_a_dead_letter(
    cluster: None, server: EmbeddedServer, artifacts: Path
) -> None:
    settings = {**SETTINGS, "max_lost_leases": 2, "suspect_after": 1}
    app = batch.deployment(
        "hangs", str(artifacts), "tree", server.url_file, queue_settings=settings, kind=HangingWorker
    )
    serve.run(app, name="hangs", route_prefix=None)
    queue = RedisQueue.open(server.url, "hangs", settings_from(settings))
    stuck = {name: np.full_like(array, 99) for name, array in rows(1).items()}
    await queue.submit([NewJob("stuck", pack(stuck), 1, 120_000)])
    status = (await asyncio.wait_for(ended(queue, ["stuck"]), 60))["stuck"]
    assert status.state is JobState.DEAD
    assert "lost its lease 2 times; last: variant 'tree' with 1 rows hangs: " in (status.error or "")
    first, second = (int(failure.worker.split(":")[1]) for failure in status.failures)
    assert first != second
    await queue.submit(jobs("after", 4))
    found = await asyncio.wait_for(ended(queue, [f"after{i}" for i in range(4)]), 60)
    assert {s.state for s in found.values()} == {JobState.DONE}
    async with asyncio.timeout(30):  # neither process is left, though its thread never returned
        while any(os.path.exists(f"/proc/{pid}") for pid in (first, second)):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.1)
    await queue.close()


async def test_it_is_scaled_from_zero_by_work_and_back_to_zero_without(
    cluster: None, server: EmbeddedServer, artifacts: Path
) -> None:
    scaling = autoscale.autoscaling(
        server.url_file, "scaled", 1000.0, min_workers=0, max_workers=2, queue_settings=SETTINGS, idle_s=0.5
    )
    app = batch.deployment(
        "scaled", str(artifacts), "tree", server.url_file, queue_settings=SETTINGS, autoscaling=scaling
    )
    serve.run(app, name="scaled", route_prefix=None)
    assert await replicas("scaled") == 0
    queue = RedisQueue.open(server.url, "scaled")
    await queue.submit(jobs("j", 3))
    found = await asyncio.wait_for(ended(queue, ["j0", "j1", "j2"]), 40)
    assert {s.state for s in found.values()} == {JobState.DONE}
    async with asyncio.timeout(30):
        # Serve announces no scaling that a test could wait on.
        while await replicas("scaled"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await queue.close()


async def replicas(app: str) -> int:
    status = await asyncio.to_thread(serve.status)
    counts = status.applications[app].deployments[f"{app}-batch"].replica_states
    return sum(counts.values())
