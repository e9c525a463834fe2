"""Answers as the simulator counts them, so that one table shows both.

A client sees less than a simulation: utilisation and batches stay empty, and whether an answer came within
its predicted time is judged by the client's own clock, network and all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Self

from router.replay.wire import Reply
from router.simulate.result import Result
from router.simulate.workload import Request

_OUTCOMES = {429: "refused", 504: "expired"}
_NO_ROUTE = "(none)"


class Record(NamedTuple):
    """One request's end. ``outcome`` is ``answered``, ``refused``, ``expired`` or ``failed``."""

    request: Request
    outcome: str
    latency_ms: float
    route: str = ""
    variant: str = ""
    predicted_ms: float | None = None

    @classmethod
    def of(cls, request: Request, reply: Reply, latency_ms: float) -> Self:
        headers = reply.headers
        outcome = "answered" if reply.status == 200 else _OUTCOMES.get(reply.status, "failed")
        try:
            predicted = float(headers["predicted-ms"])
        except (KeyError, ValueError):
            predicted = None
        return cls(
            request, outcome, latency_ms, headers.get("route", ""), headers.get("variant", ""), predicted
        )

    @classmethod
    def lost(cls, request: Request, after_ms: float) -> Self:
        return cls(request, "failed", after_ms)


def ended(record: Record) -> str:
    """Its outcome as one of `router.simulate.result.OUTCOMES`."""
    if record.outcome != "answered":
        return record.outcome
    return "met" if record.latency_ms <= record.request.budget_ms else "late"


def tallied(records: Iterable[Record], seed: int, drops: Mapping[tuple[str, str], float]) -> Result:
    """The records by route. Refusals tell no route: theirs is that of the answers with the nearest budget."""
    found, result = list(records), Result(seed)
    routes = _Routes(found)
    for record in found:
        tally = result.route(record.route or routes.like(record.request))
        if record.outcome == "answered":
            drop = drops.get((record.request.model, record.variant), 0.0)
            held = record.predicted_ms is not None and record.latency_ms <= record.predicted_ms
            met = ended(record) == "met"
            tally.answered(record.latency_ms, met, record.variant, drop, held)
        else:
            tally.ended(record.outcome, record.latency_ms)
    return result


class _Routes:
    """Routes of a policy, learnt from the answers: a route is chosen by model and budget."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._known: dict[str, dict[float, str]] = {}
        for record in records:
            if record.route:
                self._known.setdefault(record.request.model, {})[record.request.budget_ms] = record.route

    def like(self, request: Request) -> str:
        known = self._known.get(request.model)
        if not known:
            return _NO_ROUTE
        if request.budget_ms not in known:
            nearest = min(known, key=lambda budget_ms: abs(math.log(budget_ms / request.budget_ms)))
            known[request.budget_ms] = known[nearest]
        return known[request.budget_ms]
