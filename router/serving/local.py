"""One running hybrid-router on this machine: queue server, Ray, Serve and the application, as one context.

``serve``, the demo, the benchmarks and the acceptance tests all start it here, so they run what users run.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from optimizers.artifact import Manifest
from router import policy as policies
from router.policy import Policy, PolicyError, Reading
from router.policy.artifacts import read_manifests
from router.serving import ray_start, state
from router.serving.warm_up import ready_within_s


class ServerError(RuntimeError):
    """The server did not come up; the message says which part and why."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. ``redis_url`` holds a password: it is not for printing."""

    policy: Policy
    url: str
    dashboard_url: str | None
    metrics_url: str | None
    redis_url: str | None
    started_in_s: float
    #: The digest of the policy's text (`router.policy.reading.digest_of`).
    digest: str = ""
    grpc_address: str | None = None
    #: Whether calls come from this machine only.
    local_only: bool = False

    def __repr__(self) -> str:
        return f"Server({self.url!r})"

    def describe(self, log: Path | None = None) -> str:
        """What runs where, in a few lines for a person."""
        queue = (
            "at the policy's redis.url"
            if self.policy.redis.url
            else (f"bundled server, data in {self.policy.redis.data}, fsync {self.policy.redis.fsync}")
        )
        rows = [
            ("endpoint", self.url),
            ("grpc", self.grpc_address or "off"),
            ("dashboard", self.dashboard_url or "off"),
            ("metrics", self.metrics_url or "off"),
        ]
        if self.policy.queued_models:
            rows.append(("queue", queue))
        for name, model in self.policy.models.items():
            sides = []
            if model.online:
                where = "in the router" if model.online.in_router else f"x{model.online.replicas}"
                sides.append(f"online {where} ({', '.join(model.online.variants)})")
            if model.batch:
                count = model.batch.workers
                shown = str(count) if isinstance(count, int) else f"{count.min} to {count.max}"
                sides.append(f"batch x{shown} ({model.batch.variant})")
            rows.append((f"model {name}", ", ".join(sides)))
        if log:
            rows.append(("log", str(log)))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def running(
    policy_path: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    grpc_port: int | None = None,
    data: Path | None = None,
    address: str | None = None,
    insecure: bool = False,
    routers: int = 1,
    say: Callable[[str], None] = _to_stderr,
) -> Iterator[Server]:
    """Serve a policy until the context ends; whatever was started is then gone, also after a failed start.

    ``grpc_port`` opens the protocol's gRPC door beside the other.
    ``data`` overrides the policy's folder for the bundled queue server, which is by default that of
    `router.serving.state`; ``address`` joins a running Ray;
    ``insecure`` listens beyond this machine even if no key is needed; ``routers`` work side by side.
    ``say`` is given what a person should know of while it runs, also from another thread.
    Raises PolicyError, `router.serving.ray_start.ClusterError`, `router.serving.state.StateError`,
    `workers.queue.embedded.EmbeddedServerError`, `workers.queue.contract.QueueError` or `ServerError`.
    """
    begun, local_only = time.monotonic(), _is_local(host)
    reading = policies.load(policy_path)
    policy = reading.policy
    # Before Ray is started: a missing variant should be said in a tenth of a second, not after ten.
    manifests = read_manifests(policy, str(policy_path))
    ready_s = ready_within_s(policy, manifests)
    if not insecure and not local_only:
        _check_keys(policy, policy_path, host)
    with ExitStack() as stack:
        redis_url = policy.redis.url
        if policy.queued_models and redis_url is None:
            data = data or policy.redis.data or state.queue_data(say)
            redis_url = stack.enter_context(_bundled_queue(data, policy.redis.fsync, say))
        if redis_url is not None:
            for warning in _check_queues(redis_url, policy, manifests, policy_path):
                say(f"warning: {warning}")
        started = stack.enter_context(ray_start.running(host, port, address, grpc_port, policy.limits.body))
        deploy(policy_path, redis_url, reading, local_only=local_only, routers=routers)
        stack.callback(ray_start.within_bounds, _undeploy)
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        shown = f"[{shown}]" if ":" in shown else shown
        url = f"http://{shown}:{port}"
        _wait_ready(url, routers, ready_s)
        if data is not None:
            policy = policy.model_copy(update={"redis": policy.redis.model_copy(update={"data": data})})
        yield Server(
            policy,
            url,
            started.dashboard_url,
            started.metrics_url,
            redis_url,
            time.monotonic() - begun,
            reading.digest,
            f"{shown}:{grpc_port}" if grpc_port else None,
            local_only,
        )


def _is_local(host: str) -> bool:
    """Whether only this machine reaches what listens on ``host``."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False  # a name: where it points is not known here


def _check_keys(policy: Policy, path: str | Path, host: str) -> None:
    """Raise `PolicyError` where anybody who reaches this machine could ask."""
    if not policy.secured:
        mend = "give a tenant a key (hybrid-router key new), or say --insecure"
        raise PolicyError(
            [f"{path}: tenants: {host} can be reached from outside, and no key is needed; {mend}"]
        )


@contextmanager
def _bundled_queue(
    data: Path, fsync: Literal["always", "everysec"], say: Callable[[str], None]
) -> Iterator[str]:
    from workers.queue.embedded import EmbeddedServer
    from workers.queue.supervisor import supervised

    server = EmbeddedServer.start(data, fsync=fsync)
    with supervised(server, say):
        yield server.url_file  # Ray shows and logs the arguments of deployments: no password in them


def _check_queues(
    url: str, policy: Policy, manifests: Mapping[str, Mapping[str, Manifest]], path: str | Path
) -> list[str]:
    """What to warn of. Raises `PolicyError` where the server cannot hold the policy's queues."""
    import asyncio

    from workers.queue.contract import QueueError
    from workers.queue.redis.server_check import check_layouts, check_server, layout_of

    firsts = {model: next(iter(manifests[model].values())) for model in policy.queued_models}
    layouts = {model: layout_of(first.inputs, first.outputs) for model, first in firsts.items()}

    async def check() -> list[str]:
        return [*await check_server(url), *await check_layouts(url, policy.redis.namespace, layouts)]

    try:
        return [f"{path}: redis: {text}" for text in asyncio.run(check())]
    except QueueError as error:
        raise PolicyError([f"{path}: redis.url: {error}"]) from None


def deploy(
    policy_path: str | Path,
    redis_url: str | None,
    reading: Reading,
    *,
    local_only: bool = False,
    routers: int = 1,
) -> None:
    """Deploy the policy that was read, or replace what another has deployed; routers follow its file.

    Raises `ServerError` if it does not start.
    """
    from ray import serve
    from ray.serve.schema import LoggingConfig

    from router.serving.application import APP_NAME, AppArgs, application

    try:
        serve.run(
            application(
                reading,
                AppArgs(
                    policy=str(policy_path),
                    redis_url=redis_url,
                    router_replicas=routers,
                    local_only=local_only,
                ),
            ),
            name=APP_NAME,
            route_prefix="/",
            logging_config=LoggingConfig(enable_access_log=False),
        )
    except RuntimeError as error:
        raise ServerError(f"the application did not start: {_deploy_failure() or error}") from None


def _deploy_failure() -> str:
    """The messages of the deployments that failed, as Serve keeps them."""
    from ray import serve

    messages = []
    for app in serve.status().applications.values():
        for name, deployment in app.deployments.items():
            if deployment.message:
                messages.append(f"{name}: {deployment.message.strip().splitlines()[-1]}")
    return "; ".join(messages)


def _undeploy() -> None:
    """Leave nothing of ours in a joined cluster; one of our own goes whole, a moment later."""
    from ray import serve

    from router.serving.application import APP_NAME

    serve.delete(APP_NAME)


def _wait_ready(url: str, routers: int, within_s: float) -> None:
    """Until the router says that every model answers and the queue is there.

    Of several any may be the one that is asked: they are, then, when two rounds in a row say so.
    """
    last, ready, wanted = "no answer", 0, 1 if routers == 1 else 2 * routers
    # The environment's proxy has no business between a server and itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            with opener.open(f"{url}/v2/health/ready", timeout=5) as reply:
                told = json.load(reply)
                ready = ready + 1 if told.get("ready") and told.get("queues") != "unknown" else 0
                if ready >= wanted:
                    return
                if ready:
                    continue
        except (urllib.error.URLError, OSError, ValueError) as error:
            last, ready = str(error), 0
        time.sleep(0.05)
    raise ServerError(
        f"{url} was not ready within {within_s:.0f} s: {last}; the router's log says how far each model is, "
        "and 'online.ready_within' of a model in the policy sets how long this may take"
    )
