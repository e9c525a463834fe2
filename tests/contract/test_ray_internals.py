"""The private names of Ray that `router.online.ray_internals` uses are there, and are what it takes them for.

This is the test to look at first after an upgrade of Ray: what fails here breaks serving.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from ray.serve import context
from ray.serve._private import constants, haproxy_templates
from ray.serve._private.client import ServeControllerClient
from ray.serve._private.common import RequestMetadata
from ray.serve._private.controller import ServeController
from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.request_router.replica_wrapper import ActorReplicaWrapper
from ray.serve.handle import DeploymentHandle

from router.online import ray_internals
from router.serving import ray_start

ROOT = Path(__file__).parents[2]


def test_a_handle_can_be_told_to_call_by_reference() -> None:
    assert "_by_reference" in inspect.signature(DeploymentHandle.options).parameters
    assert hasattr(DeploymentHandle, "broadcast")


async def test_a_batch_reaches_the_method_of_a_replica_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def remote(*arguments: Any, **named: Any) -> str:
        calls.append((arguments, named))
        return "reply"

    method = SimpleNamespace(remote=remote, options=lambda **_: SimpleNamespace(remote=remote))
    wrapper: Any = ActorReplicaWrapper
    replica = wrapper(SimpleNamespace(handle_request=method))
    metadata = RequestMetadata("batch", "batch", call_method="run")
    monkeypatch.setattr(
        "ray.serve._private.request_router.replica_wrapper.ActorReplicaResult", lambda ref, *_, **__: ref
    )
    assert (
        replica.send_request_python(PendingRequest(["v", b""], {}, metadata), with_rejection=False) == "reply"
    )
    ((arguments, _),) = calls
    assert arguments[1:] == ("v", b"") and metadata.call_method == "run"
    assert ray_internals.ServeActor(SimpleNamespace(handle_request=method))


def test_the_client_of_a_running_serve_knows_its_ports() -> None:
    parameters = inspect.signature(context._get_global_client).parameters
    assert "raise_if_no_controller_running" in parameters
    assert isinstance(inspect.getattr_static(ServeControllerClient, "http_config"), property)
    assert "self._controller" in inspect.getsource(ServeControllerClient.__init__)
    controller: Any = ServeController
    assert hasattr(getattr(controller, "__ray_actor_class__", controller), "get_grpc_config")


def test_every_switch_of_serve_that_is_set_is_one_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve ignores a name that it does not know. ``RETRY_ON`` also carries a line of HAProxy's own."""
    environment: dict[str, str] = {}
    monkeypatch.setattr(ray_start.os, "environ", environment)
    ray_start.prepare(Path("/nowhere"))
    folder = Path(inspect.getfile(serve)).parent
    read = set(re.findall(r"RAY_SERVE_\w+", "".join(p.read_text() for p in folder.rglob("*.py"))))
    unknown = {name for name in environment if name.startswith("RAY_SERVE_")} - read
    assert len(environment) > 20 and not unknown
    assert "retry-on {{ config.retry_on }}\n" in inspect.getsource(haproxy_templates)
    assert constants.RAY_SERVE_HAPROXY_RETRY_ON


def test_no_other_file_uses_a_private_name_of_ray() -> None:
    private = re.compile(r"\bray[\w.]*\._\w|_get_global_client|\b_by_reference|\._controller\b|\._actor_id\b")
    files = [
        path for package in ("router", "workers", "optimizers") for path in (ROOT / package).rglob("*.py")
    ]
    using = {str(path.relative_to(ROOT)) for path in files if private.search(path.read_text())}
    assert using == {"router/online/ray_internals.py"}
