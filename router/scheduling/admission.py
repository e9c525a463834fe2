"""Where does this request go? One pure function from a request and the load to a decision with its reason."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from router.policy import Policy, Route
from router.policy.terms.route_facts import RouteFacts as RouteFacts
from router.scheduling import prediction
from router.scheduling.prediction import BatchLoad, ModelLoad, OnlineLoad, UnknownQueue
from router.scheduling.tuning import MAX_SUBMIT_PATIENCE_MS, QUEUE_SAFETY_FACTOR, STEP_UP_FACTOR


class RunOnline(NamedTuple):
    """Run now on an online replica; ``deadline_ms`` is on the clock that ``now_ms`` came from."""

    variant: str
    deadline_ms: float
    predicted_ms: float
    route: str
    reason: str
    #: Whether it may still be dropped, unrun, once its deadline is hopeless.
    droppable: bool = True
    #: A better variant that the work ahead left no time for.
    degraded_from: str | None = None


@dataclass(frozen=True, slots=True)
class Enqueue:
    """Wait in the deadline queue. ``variant`` is None where the worker's own will do, ``predicted_ms`` where
    the queue's state is not known.

    ``patience_ms`` is set where an online replica may run the request too: a submit that takes longer has
    failed, and the request is decided again without the queue, for what is left of its budget.
    """

    variant: str | None
    deadline_ms: float
    predicted_ms: float | None
    route: str
    reason: str
    patience_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Reject:
    """Refused before any work.

    ``miss``: the deadline is out of reach; ``full``: no room; ``unserved``: the policy has no way for it.
    ``retry_after_s`` is None where waiting does not help.
    """

    kind: Literal["miss", "full", "unserved"]
    retry_after_s: float | None
    route: str
    reason: str


Decision = RunOnline | Enqueue | Reject


def decide(facts: RouteFacts, policy: Policy, load: ModelLoad, now_ms: float) -> Decision:
    """The decision for one request; time and load are arguments, so equal input gives an equal answer."""
    route = policy.route(facts)
    if route.to == "online":
        return _online(facts, route, load.online, now_ms)
    if route.to == "batch":
        return _batch(facts, route, load, now_ms)
    return _cheapest(facts, route, load, now_ms)


def _online(facts: RouteFacts, route: Route, load: OnlineLoad | None, now_ms: float) -> RunOnline | Reject:
    if load is None:
        return _unserved(facts, route, "online")
    if load.full:
        return Reject(
            "full", (load.waiting_ms / load.replicas) / 1_000.0, route.name, "the online heap is full"
        )
    allowed = _allowed(facts, route, load)
    if not allowed:
        return Reject(
            "unserved", None, route.name, f"no online variant of {facts.model!r} may serve this route"
        )
    droppable, degrades = "reject" in route.on_miss, "degrade" in route.on_miss
    budget_ms, rows = facts.left_ms / (1.0 + route.margin), facts.row_cost or facts.rows
    overloaded = prediction.overloaded(load, allowed) if degrades else ()
    too_slow: list[tuple[str, prediction.Outlook]] = []
    for variant in allowed if degrades else allowed[:1]:
        if variant in overloaded:
            continue
        outlook = prediction.outlook(load, variant, rows)
        needed_ms = outlook.predicted_ms * (STEP_UP_FACTOR if variant in load.recently_degraded else 1.0)
        if needed_ms + (outlook.headroom_ms if droppable else 0.0) <= budget_ms:
            reason, degraded_from = _reason(facts, route, load, variant, allowed[0], overloaded)
            deadline_ms = now_ms + facts.left_ms
            return RunOnline(
                variant, deadline_ms, outlook.predicted_ms, route.name, reason, droppable, degraded_from
            )
        too_slow.append((variant, outlook))
    variant, outlook = min(too_slow, key=lambda each: each[1].predicted_ms)
    # The smaller of the two: a margin may be negative, where answers come sooner than estimated.
    least_ms = min(outlook.predicted_ms, outlook.likely_ms)
    if least_ms + (outlook.headroom_ms if droppable else 0.0) <= budget_ms:
        reason = "likely in time, though without the usual margin"
    elif not droppable:
        reason = "predicted late, and the route does not refuse"
    else:
        return _missed(facts, route, load, variant, outlook, budget_ms)
    return RunOnline(variant, now_ms + facts.left_ms, outlook.predicted_ms, route.name, reason, droppable)


def _reason(
    facts: RouteFacts, route: Route, load: OnlineLoad, chosen: str, best: str, overloaded: Collection[str]
) -> tuple[str, str | None]:
    """Why ``chosen`` is the first in time, and the variant that the work ahead degraded the request from."""
    if chosen == best:
        return _first_reason(facts, route), None
    reason = "degraded under pressure" if best in overloaded else "degraded to meet the deadline"
    # Where the budget alone is too small for the best, it is not the work ahead that is to blame.
    fits = prediction.alone_ms(load, best, facts.row_cost or facts.rows) <= facts.left_ms
    return reason, best if fits else None


def _missed(
    facts: RouteFacts,
    route: Route,
    load: OnlineLoad,
    fastest: str,
    hopes: prediction.Outlook,
    budget_ms: float,
) -> Reject:
    """Refused for want of time, with what it would take, and when to come back."""
    reason = f"predicted {hopes.predicted_ms:.3g} ms on {fastest!r}"
    if hopes.headroom_ms:
        reason += f" and {hopes.headroom_ms:.3g} ms to be sure"
    reason += f", the budget is {facts.budget_ms:.3g} ms"
    if facts.spent_ms >= 0.01 * facts.budget_ms:
        reason += f" and {facts.left_ms:.3g} ms of it are left"
    if route.margin:
        reason += f", with the route's margin {budget_ms:.3g} ms"
    if hopes.alone_ms > budget_ms:
        # The budget itself is too small: waiting does not help, and no time is promised.
        return Reject("miss", None, route.name, reason)
    over_ms = hopes.predicted_ms + hopes.headroom_ms - budget_ms
    ahead_ms = load.busy_ms + load.waiting_ms / load.replicas
    return Reject("miss", min(over_ms, ahead_ms) / 1_000.0, route.name, reason)


def _allowed(facts: RouteFacts, route: Route, load: OnlineLoad) -> list[str]:
    """The variants the caller and the route allow: the split's first, then best quality first."""
    if facts.variant is not None:
        return [facts.variant] if facts.variant in load.variants else []
    allowed, names = list(load.variants), route.variants
    if route.quality is not None:
        floor = route.quality.max_drop
        allowed = [v.name for v in load.variants.values() if v.quality_drop <= floor]
    if route.split is not None:
        names = tuple(name for name, weight in route.split.items() if weight > 0)
    if names is not None:
        allowed = [name for name in allowed if name in names]
    if route.split is None:
        return allowed
    drawn = route.drawn(facts.draw)
    if drawn in allowed:
        allowed.sort(key=lambda name: name != drawn)
    return allowed


def _first_reason(facts: RouteFacts, route: Route) -> str:
    """Why the first of those allowed is the first."""
    if facts.variant is not None:
        return "the variant that the caller pins"
    if route.split is not None:
        return "the split's variant"
    return (
        "the most accurate variant" if route.variants is None else "the most accurate that the route allows"
    )


def _batch(facts: RouteFacts, route: Route, loads: ModelLoad, now_ms: float) -> Enqueue | Reject:
    load = loads.batch
    if load is None:
        return _unserved(facts, route, "batch")
    variant = facts.variant or _drawn_for_queue(facts, route, loads)
    if variant is None and route.split is not None:
        return Reject(
            "unserved", None, route.name, "no variant of the split is within the route's quality floor"
        )
    floor = route.quality.max_drop if route.quality else None
    if variant is None and floor is not None and load.variant.quality_drop > floor:
        reason = f"the batch variant {load.variant.name!r} is below the route's quality floor"
        return Reject("unserved", None, route.name, reason)
    if variant is None and route.variants is not None and load.variant.name not in route.variants:
        reason = f"the batch variant {load.variant.name!r} is not among the route's variants"
        return Reject("unserved", None, route.name, reason)
    if isinstance(load, UnknownQueue):
        reason = "what waits in the queue is not known; it is tried"
        return Enqueue(variant, now_ms + facts.left_ms, None, route.name, reason)
    predicted = prediction.batch_ms(load, facts.rows)
    if predicted * (1.0 + route.margin) > facts.left_ms and "reject" in route.on_miss:
        reason = f"{load.waiting_rows} rows wait; predicted {predicted:.3g} ms of {facts.left_ms:.3g} ms"
        alone = prediction.batch_ms(_emptied(load), facts.rows)
        budget_ms = facts.left_ms / (1.0 + route.margin)
        retry = None if alone > budget_ms else (predicted - budget_ms) / 1_000.0
        return Reject("miss", retry, route.name, reason)
    reason = "the queue meets the deadline"
    if predicted > facts.left_ms:
        reason = "predicted late, and the route does not refuse"
    return Enqueue(variant, now_ms + facts.left_ms, predicted, route.name, reason)


def _drawn_for_queue(facts: RouteFacts, route: Route, loads: ModelLoad) -> str | None:
    """The split's variant, or the next of the split that the quality floor allows. None: there is none, or
    nothing is split."""
    drawn = route.drawn(facts.draw)
    if drawn is None or route.quality is None or route.split is None:
        return drawn
    known = dict(loads.online.variants) if loads.online else {}
    if loads.batch:
        known[loads.batch.variant.name] = loads.batch.variant
    names = [drawn, *(name for name, weight in route.split.items() if weight > 0)]
    floor = route.quality.max_drop
    return next((name for name in names if name in known and known[name].quality_drop <= floor), None)


def _cheapest(facts: RouteFacts, route: Route, load: ModelLoad, now_ms: float) -> Decision:
    """The queue where it is predicted to make it, since its batches are larger; else an online replica.

    A queue of which nothing is known is no way to go while there is another.
    """
    if load.online is None:
        return (
            _batch(facts, route, load, now_ms) if load.batch else _unserved(facts, route, "online or batch")
        )
    online = _online(facts, route, load.online, now_ms)
    if not isinstance(load.batch, BatchLoad):
        return online
    queued = _batch(facts, route, load, now_ms)
    if isinstance(queued, Reject):
        both = isinstance(online, Reject) and (queued.kind != "unserved" or online.kind == "unserved")
        return queued if both else online
    queue_ms = prediction.batch_ms(load.batch, facts.rows)
    unsure = queue_ms * QUEUE_SAFETY_FACTOR > facts.left_ms
    if unsure and isinstance(online, RunOnline) and online.predicted_ms <= max(facts.left_ms, queue_ms):
        return online
    return replace(queued, patience_ms=_patience_ms(facts, online))


def _patience_ms(facts: RouteFacts, online: RunOnline | Reject) -> float:
    """How long a submit may take: half of what is left over if the request then runs online after all."""
    needed_ms = online.predicted_ms if isinstance(online, RunOnline) else 0.0
    return min(MAX_SUBMIT_PATIENCE_MS, max(0.0, facts.left_ms - needed_ms) / 2.0)


def _emptied(load: BatchLoad) -> BatchLoad:
    return replace(load, waiting_rows=0)


def _unserved(facts: RouteFacts, route: Route, side: str) -> Reject:
    return Reject("unserved", None, route.name, f"model {facts.model!r} has no {side} side in the policy")
