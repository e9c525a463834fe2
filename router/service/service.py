"""The router without HTTP: one request in, an answer, a queued job, or a typed refusal out.

It joins the pure decision to the two paths, the online dispatcher and the deadline queue.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from optimizers.artifact import Manifest
from optimizers.tensors import check
from router.online.dispatcher import BadRows, DeadlineHopeless, HeapFull, ReplicaFailed
from router.policy import Policy
from router.policy.facts import MeasuredVariant
from router.policy.terms.route_facts import RouteFacts
from router.scheduling import prediction
from router.scheduling.admission import Enqueue, Reject, RunOnline, decide
from router.scheduling.asking import admit, route_facts
from router.scheduling.prediction import ModelLoad, UnknownQueue
from router.scheduling.rate_limits import Over, Quotas
from router.service.auth import Keyring
from router.service.errors import (
    Conflict,
    DeadlinePassed,
    NotPermitted,
    Refused,
    RowsFailed,
    TooManyRows,
    Unavailable,
    UnknownModel,
    UnknownModelVariant,
)
from router.service.metrics import Recorder
from router.service.queued import NotQueued, QueuedRequests
from router.service.readiness import Readiness
from router.service.requests import Answer, InferenceRequest, PendingRequest, ServedModel
from router.service.shadow import ShadowRuns
from workers.queue.settings import settings_from


class Service:
    """Decides and runs. ``clock`` gives milliseconds, monotonic; ``routers`` work side by side.

    ``epoch_s`` is the wall clock, for routes on the time of day; ``draw`` gives random numbers in [0, 1).
    """

    def __init__(
        self,
        policy: Policy,
        models: Mapping[str, ServedModel],
        recorder: Recorder,
        clock: Callable[[], float] = lambda: time.monotonic() * 1_000.0,
        routers: int = 1,
        epoch_s: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._epoch_s, self._draw = epoch_s, draw
        self.policy, self._models, self._clock, self.recorder = policy, models, clock, recorder
        self.keyring = Keyring(policy.tenants)
        self._quotas = Quotas(policy.limits_of, routers)
        self._shadows = ShadowRuns(recorder, clock)
        self.queued = QueuedRequests(models, recorder, lambda: self.policy, clock)
        self._batch_variants = {
            name: _variant(model.batch.variant, models[name].variants)
            for name, model in policy.models.items()
            if model.batch
        }

    def apply_policy(self, policy: Policy) -> None:
        """Go on under another policy with the same models; requests in flight keep what was decided."""
        self.policy, self.keyring = policy, Keyring(policy.tenants)
        self._quotas.limits_of = policy.limits_of
        for name, served in self._models.items():
            online = policy.models[name].online
            if served.online is not None and online is not None:
                served.online.configure(online.max_batch, online.max_waiting, online.in_time)
            if served.queue is not None:
                served.queue.configure(settings_from(policy.queue_settings))

    @property
    def models(self) -> Mapping[str, ServedModel]:
        return self._models

    def models_of(self, tenant: str) -> list[ServedModel]:
        """The models that a tenant may use."""
        return [model for name, model in self._models.items() if self.keyring.may_use(tenant, name)]

    def permit(self, tenant: str, model: str) -> None:
        """Raise `NotPermitted` unless the tenant may use the model."""
        if not self.keyring.may_use(tenant, model):
            raise NotPermitted(f"tenant {tenant!r} may not use model {model!r}")

    def now_ms(self) -> float:
        """The service's clock, on which an `InferenceRequest` has its arrival."""
        return self._clock()

    @contextmanager
    def counted(self, tenant: str, waits: bool = False) -> Iterator[bool]:
        """Count one request of a tenant, of whatever kind, before anything of it is read.

        Raises `Refused` for a tenant that is over its rate or its requests in flight. With ``waits`` only for
        the rate: a request that would wait is let in, and gets False where it must not wait, because the
        tenant has no place in flight left.
        """
        if not self.policy.limits_tenants:
            yield True
            return
        quotas, now_ms = self._quotas, self._clock()
        holds = not waits or quotas.has_place(tenant)
        over = quotas.enter(tenant, now_ms) if holds else quotas.enter_briefly(tenant, now_ms)
        if over is not None:
            raise self._over(tenant, over)
        try:
            yield holds
        finally:
            if holds:
                quotas.leave(tenant)

    def _over(self, tenant: str, over: Over) -> Refused:
        self.recorder.tenant(tenant, "over quota")
        return Refused(over.what, "quota", over.retry_after_s)

    def model(self, name: str, variant: str | None = None) -> ServedModel:
        """The served model; raises `UnknownModel` or `UnknownModelVariant`, naming what there is."""
        served = self._models.get(name)
        if served is None:
            raise UnknownModel(f"no model {name!r} here; there is {', '.join(self._models)}")
        if variant is not None and variant not in served.variants:
            raise UnknownModelVariant(
                f"model {name!r} has no variant {variant!r}; it has {', '.join(served.variants)}. "
                "A version is the name of a variant here; without one the router chooses"
            )
        return served

    def describe_load(self, name: str) -> dict[str, Any]:
        """What waits and runs for one model now, and the queue's totals, for people and dashboards."""
        served = self.model(name)
        report: dict[str, Any] = {"name": name}
        if served.online:
            load = served.online.load()
            report["online"] = {
                "busy_ms": load.busy_ms,
                "waiting_ms": load.waiting_ms,
                "hop_ms": load.hop_ms,
                "hop_deviation_ms": served.online.hop_deviation_ms,
                "prediction_margin": load.prediction_margin,
                "headroom_ms": load.headroom_ms,
                "row_cost_shares": served.online.row_cost.shares,
                "batches": {
                    v: {"count": count, "rows": rows}
                    for (model, v), (count, rows) in self.recorder.batch_totals.items()
                    if model == name
                },
                "profiles": {v: variant.profile.to_json() for v, variant in load.variants.items()},
                "predicted_ms": {v: prediction.online_ms(load, v, 1) for v in load.variants},
                "predictions": {
                    "held": self.recorder.predictions[name, True],
                    "total": self.recorder.predictions[name, True] + self.recorder.predictions[name, False],
                },
            }
        if served.online and served.queue:
            counted = self.recorder.rescues
            report["rescued"] = {how: counted[name, how] for how in ("met", "late", "returned")}
        if served.queue:
            stats = served.known_stats(self._clock())
            report["queue_known"] = stats is not None
            if stats is not None:
                restarts = self.recorder.queue_server_restarts
                totals = dict(stats.totals)
                report["queue"] = {**asdict(stats), "totals": totals, "server_restarts": restarts}
        return report

    async def infer(self, request: InferenceRequest) -> Answer | PendingRequest:
        """Decide, then run or queue. Raises `ServiceError`, and TensorError for inputs that do not fit."""
        served = self.model(request.model, request.variant)
        rows = check(request.inputs, served.inputs)
        if rows > self.policy.limits.rows:
            raise TooManyRows(
                f"{rows} rows in one request; the policy's limits.rows is {self.policy.limits.rows}"
            )
        started, policy = self._clock(), self.policy
        spent_ms = 0.0 if request.arrived_ms is None else max(0.0, started - request.arrived_ms)
        is_over = spent_ms >= request.budget_ms
        row_cost = served.online.row_cost.of_request(request.inputs, rows) if served.online else rows
        counted_ms = 0.0 if is_over else spent_ms
        facts = route_facts(request, rows, row_cost, policy, self._epoch_s, self._draw, counted_ms)
        decision = admit(
            facts,
            policy,
            self._quotas,
            lambda: self._load(served, started, facts.left_ms, row_cost),
            started,
        )
        if isinstance(decision, Over):
            raise self._over(request.tenant, decision)
        if isinstance(decision, Reject):
            self.recorder.request(request.model, decision.route, "none", "", "refused", request.tenant)
            raise Refused(decision.reason, decision.kind, decision.retry_after_s)
        if is_over:  # a request that is refused on arrival got that answer above
            self._quotas.give_rows_back(request.tenant, rows)
            self.recorder.request(request.model, decision.route, "none", "", "expired", request.tenant)
            self.recorder.deadline(request.model, decision.route, False)
            raise DeadlinePassed(
                f"the budget of {request.budget_ms:.3g} ms was over when the request had been read, after "
                f"{spent_ms:.3g} ms; nothing was run"
            )
        try:
            if isinstance(decision, RunOnline):
                return await self._run_online(served, request, decision, started, row_cost)
            return await self._enqueue(served, request, facts, policy, decision, started)
        except (Refused, Conflict, Unavailable):
            self._quotas.give_rows_back(request.tenant, rows)
            raise

    def _load(self, served: ServedModel, now_ms: float, budget_ms: float, row_cost: int) -> ModelLoad:
        online = served.online.load(now_ms + budget_ms, row_cost) if served.online else None
        batch = self.policy.models[served.name].batch
        if batch is None:
            return ModelLoad(online, None)
        variant, stats = self._batch_variants[served.name], served.known_stats(now_ms)
        if stats is None:
            return ModelLoad(online, UnknownQueue(variant))
        queued = prediction.batch_load(
            variant,
            batch.worker_count,
            batch.max_batch,
            stats.waiting_rows,
            stats.rows_per_s,
            served.queue_ms.value,
        )
        return ModelLoad(online, queued)

    async def _enqueue(
        self,
        served: ServedModel,
        request: InferenceRequest,
        facts: RouteFacts,
        policy: Policy,
        decision: Enqueue,
        started: float,
    ) -> Answer | PendingRequest:
        """Queue the request; one that may run online too does so where the queue does not take it."""
        try:
            left_ms = decision.deadline_ms - self._clock()
            return await self.queued.submit(served, request, decision, facts.rows, left_ms)
        except NotQueued as error:
            refused = f"the queue cannot take the request now: {error}"
        if decision.patience_ms is not None and served.online:
            now_ms, row_cost = self._clock(), facts.row_cost or facts.rows
            tried_ms = now_ms - started
            facts = facts._replace(spent_ms=facts.spent_ms + tried_ms)
            online = served.online.load(decision.deadline_ms, row_cost)
            again = decide(facts, policy, ModelLoad(online, None), now_ms)
            if isinstance(again, RunOnline):
                self.recorder.fallback(served.name, decision.route)
                return await self._run_online(served, request, again, now_ms, row_cost, tried_ms)
            refused += f"; online: {again.reason}"
        self.recorder.request(served.name, decision.route, "batch", "", "failed", request.tenant)
        raise Unavailable(refused)

    async def _run_online(
        self,
        served: ServedModel,
        request: InferenceRequest,
        decision: RunOnline,
        started: float,
        row_cost: int,
        tried_ms: float = 0.0,
    ) -> Answer:
        """``tried_ms``: how long the queue was tried before the decision, which was made at ``started``."""
        assert served.online is not None
        outcome = "failed"
        if decision.degraded_from is not None:
            served.online.note_degraded(decision.degraded_from)
        try:
            answer = await served.online.run(
                decision.variant,
                request.inputs,
                decision.deadline_ms,
                droppable=decision.droppable,
                predicted_ms=decision.predicted_ms,
                row_cost=row_cost,
            )
            outcome = "done"
        except DeadlineHopeless as error:
            outcome = "expired"
            raise DeadlinePassed(f"dropped before it ran: {error}") from None
        except HeapFull as error:
            outcome = "refused"
            raise Refused(str(error), "full", None) from None
        except BadRows as error:
            outcome = "invalid"
            raise RowsFailed(f"the model fails on this request: {error}") from None
        except ReplicaFailed as error:
            raise Unavailable(str(error)) from None
        except asyncio.CancelledError:
            outcome = "left"
            raise
        finally:
            now = self._clock()
            met = outcome == "done" and now <= decision.deadline_ms
            self.recorder.request(
                request.model, decision.route, "online", decision.variant, outcome, request.tenant
            )
            if outcome in ("done", "expired", "failed"):
                self.recorder.deadline(request.model, decision.route, met)
            if outcome == "done":
                since = started - tried_ms if request.arrived_ms is None else request.arrived_ms
                self.recorder.latency(request.model, decision.route, "online", now - since)
                self.recorder.prediction(request.model, now - started <= decision.predicted_ms)
            elif outcome == "expired":
                self.recorder.prediction(request.model, False)
        shadow = self.policy.shadows.get(decision.route)
        if shadow is not None and self._draw() < shadow.share:
            self._shadows.start(served, request, decision, answer.outputs, shadow.variant)
        return Answer(
            None,
            answer.outputs,
            request.model,
            answer.variant,
            decision.route,
            "online",
            tried_ms + decision.predicted_ms,
            tried_ms + answer.queued_ms,
            met,
        )

    def readiness(self, is_warm: Callable[[str], bool]) -> Readiness:
        """What is ready; ``is_warm`` tells of a model whether its online variants have answered."""
        return Readiness(self._models, lambda: self.policy, is_warm, self._clock)

    async def close(self) -> None:
        """End what runs in the background; requests in flight are their callers'."""
        await self._shadows.close()


def _variant(name: str, manifests: Mapping[str, Manifest]) -> MeasuredVariant:
    return MeasuredVariant(name, manifests[name].profile, manifests[name].quality_drop)
