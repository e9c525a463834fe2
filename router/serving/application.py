"""The composition root: a policy becomes a Ray Serve application.

``router.serving.application:build`` is an application builder, so ``serve deploy`` works on any Ray cluster;
the command line's ``serve`` calls it too. Environment that Ray's processes must start with is
`router.serving.ray_start`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from optimizers.artifact import Manifest
from router import policy as policies
from router.ingress.grpc.methods import GrpcIngress, GrpcMethods
from router.ingress.grpc.peers import is_here
from router.ingress.http.application import Ingress
from router.online.dispatcher import OnlineDispatcher
from router.online.replicas import OwnSource, Replicas, ReplicaSource, ServeSource
from router.policy import BatchSection, Policy, PolicyError, Reading
from router.policy.artifacts import read_examples, read_manifests
from router.policy.changes import PolicyChange
from router.policy.facts import MeasuredVariant
from router.policy.secrets import URL_ELSEWHERE, holds_password
from router.scheduling.prediction import drain_rows_per_s
from router.service.metrics import Publisher, Recorder
from router.service.request_log import LogFile, RequestLog, file_name, serve_folder
from router.service.requests import ServedModel
from router.service.rescuer import Rescuer
from router.service.service import Service
from router.serving import state
from router.serving.policy_file import PolicyFile, follow
from router.serving.warm_up import WarmUp
from workers import online
from workers.batch import autoscale, deployment
from workers.queue.contract import DeadlineQueue
from workers.queue.redis import client, restarts
from workers.queue.redis import queue as redis_queue
from workers.queue.redis.server_check import layout_of
from workers.queue.settings import QueueSettings

APP_NAME = "hybrid-router"
Handle = DeploymentHandle[Any]


class AppArgs(BaseModel):
    """What ``serve deploy`` gives: the policy file, and the queue's server unless the policy names it."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    policy: str
    redis_url: str | None = None
    router_replicas: int = 1
    #: Where no API key is needed, take gRPC calls from this machine only.
    local_only: bool = False


def build(args: AppArgs | dict[str, Any]) -> Application:
    """The bound application: router, and per model its online replicas and batch workers.

    Serve hands over what stands in its configuration; it does not see a class behind a postponed annotation.
    """
    args = args if isinstance(args, AppArgs) else AppArgs.model_validate(args)
    return application(policies.load(args.policy), args)


def application(reading: Reading, args: AppArgs) -> Application:
    """The same for a policy that was read from the file that ``args`` name; routers follow that file.

    Policy and digest are among the router's arguments: a router that is started again while the file is
    broken has the policy that was deployed, and the deployment of another replaces the router too.
    """
    policy, digest = reading
    manifests = read_manifests(policy, args.policy)
    redis_url = args.redis_url or policy.redis.url
    if redis_url is not None and holds_password(redis_url):
        raise PolicyError([f"{args.policy}: redis_url: {URL_ELSEWHERE}"])
    if redis_url is None and policy.queued_models:
        raise PolicyError(
            [f"{args.policy}: redis.url: needed to deploy; only `hybrid-router serve` brings its own"]
        )
    handles: dict[str, Any] = {}
    workers: dict[str, Any] = {}
    for name, model in policy.models.items():
        folder = str(model.artifacts.absolute())
        if model.online and not model.online.in_router:
            handles[name] = online.deployment(
                name,
                folder,
                model.online.variants,
                replicas=model.online.replicas,
                threads=model.online.threads,
                hung_after_ms=model.online.hung_after,
            )
        if model.batch and redis_url:
            chosen = manifests[name][model.batch.variant]
            workers[name] = _batch_deployment(name, model.batch, chosen, folder, redis_url, policy)
    router = serve.deployment(
        name="router",
        num_replicas=args.router_replicas,
        # The router admits by deadline and by its own bounds; Serve's limit must never be what holds.
        max_ongoing_requests=100_000,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=1.0,
        health_check_timeout_s=10.0,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=10.0,
        logging_config=online.LOGGING,
    )(Router)
    bound: Application = router.bind(
        policy,
        digest,
        os.path.abspath(args.policy),
        os.getcwd(),
        redis_url,
        handles,
        workers,
        args.router_replicas,
        args.local_only,
    )
    return bound


def _batch_deployment(
    name: str, section: BatchSection, manifest: Manifest, folder: str, redis_url: str, policy: Policy
) -> Any:
    count, settings, scaling = section.workers, policy.queue_settings, None
    if not isinstance(count, int):
        variant = MeasuredVariant(section.variant, manifest.profile, manifest.quality_drop)
        scaling = autoscale.autoscaling(
            redis_url,
            name,
            drain_rows_per_s(variant, 1, section.max_batch, 0, None),
            min_workers=count.min,
            max_workers=count.max,
            namespace=policy.redis.namespace,
            queue_settings=settings,
            idle_s=count.idle / 1_000.0,
        )
    return deployment.deployment(
        name,
        folder,
        section.variant,
        redis_url,
        workers=section.worker_count,
        autoscaling=scaling,
        namespace=policy.redis.namespace,
        layout=layout_of(manifest.inputs, manifest.outputs),
        queue_settings=settings,
        max_batch=section.max_batch,
        lease_ms=int(section.lease),
        hung_after_ms=section.hung_after,
        threads=section.threads,
        sched_idle=section.sched_idle,
    )


@serve.ingress()
class Router(GrpcMethods):
    """The deployment behind the endpoint: HTTP and gRPC, decisions, the online dispatchers of one process."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it: background tasks need the loop
        self,
        policy: Policy,
        digest: str,
        policy_path: str,
        folder: str,
        redis_url: str | None,
        handles: Mapping[str, Handle],
        workers: Mapping[str, Handle],
        routers: int,
        local_only: bool,
    ) -> None:
        os.chdir(folder)
        manifests = read_manifests(policy, policy_path)
        self._recorder = Recorder()
        self._replicas: list[Replicas] = []
        self._own: list[online.BatchRunner] = []
        self._redis = client.connect(redis_url) if redis_url else None
        models = {
            name: self._serve_model(policy, name, manifests[name], handles.get(name))
            for name in policy.models
        }
        self._service = Service(policy, models, self._recorder, routers=routers)
        self._policy_file = PolicyFile(policy_path, policy, digest)
        self._recorder.policy(digest, "applied")
        self._log_file = LogFile(serve_folder() or state.make() / "log", file_name())
        sections = {name: model.online for name, model in policy.models.items() if model.online}
        self._warm_up = WarmUp(models, sections, read_examples(policy))
        self._rescuers = dict(self._make_rescuers())
        self._tasks = [
            asyncio.create_task(self._warm_up.run()),
            asyncio.create_task(self._service.queued.watch()),
            asyncio.create_task(follow(self._policy_file, self._apply_policy)),
            asyncio.create_task(Publisher(self._recorder).run()),
            asyncio.create_task(self._log_file.flush()),
            *(
                [asyncio.create_task(restarts.watch(self._redis, self._recorder.queue_server_restart))]
                if self._redis
                else []
            ),
            *(asyncio.create_task(rescuer.run()) for rescuer in self._rescuers.values()),
            *(asyncio.create_task(replicas.watch()) for replicas in self._replicas),
        ]
        ready = self._service.readiness(self._warm_up.is_warm)
        log = RequestLog(lambda: self._service.policy.logs.share, self._log_file.write)
        self._ingress = Ingress(
            self._service, ready, version("hybrid-router"), self._policy_file.describe, log
        )

        own: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        here = {own} if local_only else None
        self.grpc = GrpcIngress(
            self._service,
            ready,
            version("hybrid-router"),
            log,
            lambda peer: here is None or self._service.keyring.secured or is_here(peer, here),
        )

    def _serve_model(
        self, policy: Policy, name: str, manifests: Mapping[str, Manifest], handle: Handle | None
    ) -> ServedModel:
        first = next(iter(manifests.values()))
        section = policy.models[name].online
        dispatcher = None
        source = self._source(policy, name, handle)
        if section and source is not None:
            best_first = sorted(section.variants, key=lambda v: manifests[v].quality_drop)
            replicas = Replicas(source)
            self._replicas.append(replicas)
            dispatcher = OnlineDispatcher(
                {v: MeasuredVariant(v, manifests[v].profile, manifests[v].quality_drop) for v in best_first},
                replicas.send,
                replicas=section.replicas,
                max_batch=section.max_batch,
                max_waiting=section.max_waiting,
                in_time=section.in_time,
                inputs=first.inputs,
                on_batch=lambda variant, rows, ms: self._recorder.batch(name, variant, rows),
            )
            replicas.on_change = dispatcher.set_replicas
        queue: DeadlineQueue | None = None
        if policy.models[name].batch and self._redis is not None:
            settings = QueueSettings(**policy.queue_settings)
            queue = redis_queue.RedisQueue(
                self._redis,
                name,
                settings,
                namespace=policy.redis.namespace,
                layout=layout_of(first.inputs, first.outputs),
            )
        return ServedModel(name, first.inputs, first.outputs, manifests, dispatcher, queue)

    def _source(self, policy: Policy, name: str, handle: Handle | None) -> ReplicaSource | None:
        model = policy.models[name]
        if model.online is None or not model.online.in_router:
            return None if handle is None else ServeSource(handle)
        section = model.online
        own = online.BatchRunner(
            name, str(model.artifacts.absolute()), section.variants, section.threads, section.hung_after
        )
        self._own.append(own)
        return OwnSource(own)

    def _make_rescuers(self) -> Iterator[tuple[str, Rescuer]]:
        """For each model with both sides; where the policy lends the queue no online time, they idle."""
        for name, served in self._service.models.items():
            section = self._service.policy.models[name]
            online, queue, dispatcher = section.online, served.queue, served.online
            if not (section.batch and online and queue and dispatcher):
                continue
            chosen = served.variants[section.batch.variant]
            variant = MeasuredVariant(section.batch.variant, chosen.profile, chosen.quality_drop)
            may_rescue = partial(self._may_rescue, served)
            yield (
                name,
                Rescuer(
                    queue,
                    dispatcher,
                    served.inputs,
                    variant,
                    online,
                    section.batch,
                    self._recorder,
                    may_rescue,
                ),
            )

    def _may_rescue(self, served: ServedModel) -> bool:
        return self._warm_up.is_warm(served.name) and self._service.queued.may_hold_work(served)

    def _apply_policy(self, change: PolicyChange) -> None:
        if change.outcome == "applied":
            self._service.apply_policy(change.policy)
            for name, rescuer in self._rescuers.items():
                section = change.policy.models[name]
                if section.online and section.batch:
                    rescuer.configure(section.online, section.batch)
        self._recorder.policy(self._policy_file.digest, self._policy_file.state)

    def __serve_build_asgi_app__(self) -> Ingress:
        return self._ingress

    async def check_health(self) -> None:
        """Serve replaces the replica when a background task has died, or a model of its own hangs."""
        for task in self._tasks:
            if task.done():
                raise RuntimeError(f"a background task of the router ended: {task}")
        for own in self._own:
            await own.check_health()

    async def __del__(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._service.close()
        self._log_file.close()
        for served in self._service.models.values():
            if served.online:
                await served.online.close()
            if served.queue:
                with contextlib.suppress(Exception):
                    await served.queue.close()
        for own in self._own:
            own.close()
        if self._redis is not None:
            await self._redis.aclose()
