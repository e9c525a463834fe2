"""Answers as the simulator counts them, so that one table shows both.

A client sees less than a simulation: utilisation and batches stay empty, and whether an answer came within
its predicted time is judged by the client's own clock, network and all.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple, Self

import orjson

from router.bench.http_pool import TimedReply
from router.simulate.result import NONE, REFUSALS, OutcomeTally, SimulationResult
from router.simulate.workload import Request

_OUTCOMES = {403: "refused", 413: "refused", 429: "refused", 504: "expired"}
#: Why a request was refused, where the status alone says it.
_REFUSED_FOR = {403: "forbidden", 413: "size"}
#: Refusals that come before any route.
_BEFORE_ROUTES = ("forbidden", "size", "quota")


class RequestRecord(NamedTuple):
    """One request's end. ``outcome`` is ``answered``, ``refused``, ``expired`` or ``failed``; ``refused_for``
    is one of `router.simulate.result.REFUSALS`, or empty where the server does not say."""

    request: Request
    outcome: str
    latency_ms: float
    route: str = ""
    variant: str = ""
    predicted_ms: float | None = None
    refused_for: str = ""

    @classmethod
    def of(cls, request: Request, reply: TimedReply, latency_ms: float) -> Self:
        headers = reply.headers
        outcome = "answered" if reply.status == 200 else _OUTCOMES.get(reply.status, "failed")
        refused_for = _REFUSED_FOR.get(reply.status) or _kind(reply)
        if refused_for == "unserved":
            outcome = "refused"
        try:
            predicted = float(headers["predicted-ms"])
        except (KeyError, ValueError):
            predicted = None
        return cls(
            request,
            outcome,
            latency_ms,
            headers.get("route", ""),
            headers.get("variant", ""),
            predicted,
            refused_for,
        )

    @classmethod
    def lost(cls, request: Request, after_ms: float) -> Self:
        return cls(request, "failed", after_ms)


def _kind(reply: TimedReply) -> str:
    """The kind of a refusal, as its problem document tells it."""
    if reply.status not in (422, 429):
        return ""
    try:
        kind = orjson.loads(reply.body)["kind"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""
    return kind if kind in REFUSALS else ""


def ended(record: RequestRecord) -> str:
    """Its outcome as one of `router.simulate.result.OUTCOMES`."""
    if record.outcome != "answered":
        return record.outcome
    return "met" if record.latency_ms <= record.request.budget_ms else "late"


def tallied(
    records: Iterable[RequestRecord], seed: int, drops: Mapping[tuple[str, str], float]
) -> SimulationResult:
    """The records by route and tenant. Refusals tell no route: theirs is that of the answers to the like
    requests with the nearest budget."""
    known, result = list(records), SimulationResult(seed)
    result.by_tenant = any(record.request.tenant for record in known)
    routes = _Routes(known)
    for record in known:
        route = record.route
        if not route and record.refused_for not in _BEFORE_ROUTES:
            route = routes.like(record.request)
        for tally in result.tallies(route, record.request.tenant):
            _count(tally, record, drops)
    return result


def _count(tally: OutcomeTally, record: RequestRecord, drops: Mapping[tuple[str, str], float]) -> None:
    if record.outcome == "answered":
        drop = drops.get((record.request.model, record.variant), 0.0)
        held = record.predicted_ms is not None and record.latency_ms <= record.predicted_ms
        tally.answered(record.latency_ms, ended(record) == "met", record.variant, drop, held)
    else:
        tally.ended(record.outcome, record.latency_ms, record.refused_for)


class _Routes:
    """Routes of a policy, learnt from the answers: like requests with like budgets take the same."""

    def __init__(self, records: Iterable[RequestRecord]) -> None:
        self._known: dict[Hashable, dict[float, str]] = {}
        for record in records:
            if record.route:
                request = record.request
                for key in (_alike(request), request.model):
                    self._known.setdefault(key, {})[request.budget_ms] = record.route

    def like(self, request: Request) -> str:
        known = self._known.get(_alike(request)) or self._known.get(request.model)
        if not known:
            return NONE
        if request.budget_ms not in known:
            nearest = min(known, key=lambda budget_ms: abs(math.log(budget_ms / request.budget_ms)))
            known[request.budget_ms] = known[nearest]
        return known[request.budget_ms]


def _alike(request: Request) -> Hashable:
    """What a route may depend on beside the budget."""
    headers, parameters = sorted(request.headers.items()), sorted(request.parameters.items())
    return request.model, request.tenant, request.rows, repr(headers), repr(parameters)
