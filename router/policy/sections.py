"""The sections of a routing policy, each with its keys. `router.policy.document` puts them together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from router.policy.conditions.when import When
from router.policy.secrets import URL_ELSEWHERE, holds_password
from router.policy.tenants import TenantLimits
from router.policy.terms.values import (
    BudgetMs,
    Bytes,
    Confidence,
    Milliseconds,
    Name,
    Names,
    Origin,
    Section,
    Share,
    Surcharge,
)


class Quality(Section):
    """How much worse than the original an answer's variant may be, in the manifest's quality metric."""

    max_drop: Annotated[float, Field(ge=0, le=1)]
    """The most that the variant's quality may be below the original's. Example: ``0.02``"""


class Shadow(Section):
    """A share of the online requests also runs on ``variant``, after their callers have been answered;
    whether the two agree is counted (``hybrid_shadow_total``)."""

    variant: Name
    """The variant that runs as well. Callers never see its answers. Example: ``tree``"""
    share: Share = 0.1
    """The share of the route's requests that also run on it. Example: ``5%``"""


class Route(Section):
    """Where requests that match go, and what to do when the deadline is predicted to be missed."""

    name: Name
    """The route's name, in answers, metrics and logs. Example: ``interactive``"""
    when: When = When()
    """The conditions that a request must meet. Without any the route takes every request. Example:
    ``{budget: "<= 250ms"}``"""
    to: Literal["online", "batch", "auto"]
    """Where its requests go: to a replica now, into the queue, or to the cheaper of both that is in
    time. Example: ``auto``"""
    variants: Names | None = None
    """Of the model's variants only these. Example: ``[float32, int8]``"""
    quality: Quality | None = None
    """How much worse than the original an answer may be. Example: ``{max_drop: 0.02}``"""
    margin: Surcharge = 0.0
    """How much more time than predicted must be left for a deadline to count as met. Example: ``25%``"""
    split: dict[Name, Annotated[float, Field(ge=0, le=1e6)]] | None = None
    """The variants to try first, drawn by weight: a canary. Example: ``{float32: 80, int8: 20}``"""
    shadow: Shadow | None = None
    """A second variant that runs on a share of the requests, for comparison. Example: ``{variant: tree,
    share: 5%}``"""
    on_miss: tuple[Literal["degrade", "reject"], ...] = ("degrade", "reject")
    """What to do if no variant is predicted to be in time: try faster variants, refuse. Without `reject`
    the request runs late. Example: ``[degrade, reject]``"""

    @model_validator(mode="after")
    def _sensible(self) -> Route:
        if self.split is not None and not sum(self.split.values()) > 0:
            raise ValueError("a split needs a weight above 0")
        for variant in self.split or ():
            if self.variants is not None and variant not in self.variants:
                raise ValueError(f"split names {variant!r}, which is not in the route's 'variants'")
        if self.shadow and self.to == "batch":
            raise ValueError("a shadow runs beside online requests; this route sends all to the queue")
        return self

    @property
    def asks_for(self) -> frozenset[str]:
        """The fields of `RouteFacts` beyond model, budget, tenant and rows that this route depends on."""
        asked = {condition.NEEDS for condition in self.when.conditions if condition.NEEDS}
        return frozenset({*asked, "draw"} if self.split else asked)

    def drawn(self, draw: float) -> str | None:
        """The side of the split that ``draw``, in [0, 1), falls on; None where nothing is split."""
        if self.split is None:
            return None
        left = draw * sum(self.split.values())
        for variant, weight in self.split.items():
            left -= weight
            if left < 0:
                return variant
        return next(variant for variant, weight in reversed(self.split.items()) if weight > 0)


class RescueSection(Section):
    """How much of a model's online time may go to queued jobs that would be late; 0 gives them none."""

    share: Share = 0.1
    """The share of the replicas' time that queued jobs may have which would be late; 0 gives them none.
    Example: ``10%``"""


class OnlineSection(Section):
    """Online replicas, each of which holds every variant that is listed."""

    variants: Annotated[tuple[Name, ...], Field(min_length=1)]
    """The variants that every replica holds, in any order. Example: ``[float32, int8]``"""
    in_router: bool = False
    """Whether each router runs the model itself, for models that take less than 5 ms a row. Example:
    ``true``"""
    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """The number of replicas. Example: ``2``"""
    max_batch: Annotated[int, Field(ge=1, le=65536)] = 64
    """The most rows that one batch may have. Example: ``64``"""
    max_waiting: Annotated[int, Field(ge=1)] = 10_000
    """The most requests that may wait; more are refused. Example: ``10000``"""
    in_time: Confidence = 0.0
    """The share of accepted requests that are to be answered in time. By default whatever is predicted
    in time is accepted. Example: ``99.9%``"""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """The threads that a replica computes with. Example: ``1``"""
    ready_within: Annotated[Milliseconds, Field(gt=0)] | None = None
    """How long the warm-up may take before `serve` gives up. By default it follows from the latency
    profiles, and is 60 s at least. Example: ``5min``"""
    hung_after: Annotated[Milliseconds, Field(gt=0)] | None = None
    """How long one batch may compute before its replica is replaced. By default it follows from the
    latency profiles, and is 30 s at least. Example: ``2min``"""
    rescue: RescueSection = RescueSection()
    """How much online time queued jobs may have. Example: ``{share: 10%}``"""

    @model_validator(mode="after")
    def _one_in_each_router(self) -> OnlineSection:
        if self.in_router and self.replicas > 1:
            raise ValueError(
                f"replicas is {self.replicas}, and with in_router each router has one of its own; leave "
                "'replicas' out, and start more routers (serve --routers N) where one does not keep up"
            )
        return self


class WorkerRange(Section):
    """As many workers as the queue's deadlines ask for. ``min: 0``: none after ``idle`` without work."""

    min: Annotated[int, Field(ge=0, le=1000)] = 0
    """The fewest workers. With 0 there are none after `idle` without work. Example: ``0``"""
    max: Annotated[int, Field(ge=1, le=1000)]
    """The most workers. Example: ``4``"""
    idle: Milliseconds = 30_000.0
    """How long a worker has no work before it ends. Example: ``30s``"""

    @model_validator(mode="after")
    def _ordered(self) -> WorkerRange:
        if self.min > self.max:
            raise ValueError(f"min is {self.min} and max {self.max}; write min <= max")
        return self


class BatchSection(Section):
    """Batch workers that drain the model's queue. Time that waits for a processor does not count as hung."""

    variant: Name
    """The variant that the queue's jobs run on. Example: ``int8``"""
    workers: Annotated[
        Annotated[int, Field(ge=1, le=1000), Tag("[number]")] | Annotated[WorkerRange, Tag("[range]")],
        Discriminator(lambda given: "[range]" if isinstance(given, dict | WorkerRange) else "[number]"),
    ] = 1
    """The number of workers, or a range to scale in. Example: ``{min: 0, max: 4}``"""
    max_batch: Annotated[int, Field(ge=1, le=65536)] = 256
    """The most rows that one batch may have. Example: ``256``"""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """The threads that a worker computes with. Example: ``1``"""
    lease: Milliseconds = 30_000.0
    """How long a worker holds a job without news before another may take it. Example: ``30s``"""
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    """How often a job may fail before it becomes a dead letter. Example: ``3``"""
    hung_after: Annotated[Milliseconds, Field(gt=0)] | None = None
    """How long one batch may compute before its worker is replaced. By default it follows from the
    latency profile, and is 30 s at least. Example: ``2min``"""
    sched_idle: bool = True
    """Whether workers compute only while no other process wants the processor. Example: ``true``"""

    @property
    def worker_count(self) -> int:
        """The most workers that there can be: what predictions count on, since work calls them."""
        return self.workers if isinstance(self.workers, int) else self.workers.max


class ModelSection(Section):
    """One model: where its variants lie, and how they are served."""

    artifacts: Path
    """The folder of the variants' artifacts, from the working directory. Example: ``artifacts/digits``"""
    online: OnlineSection | None = None
    """Online replicas; without it nothing of the model runs online. Example: ``{variants: [float32,
    int8]}``"""
    batch: BatchSection | None = None
    """Batch workers; without it the model has no queue. Example: ``{variant: int8}``"""

    @model_validator(mode="after")
    def _served(self) -> ModelSection:
        if self.online is None and self.batch is None:
            raise ValueError("a model needs an 'online' section, a 'batch' section, or both")
        return self

    @property
    def variants(self) -> tuple[str, ...]:
        """Every variant that serving needs, each once."""
        names = list(self.online.variants) if self.online else []
        if self.batch and self.batch.variant not in names:
            names.append(self.batch.variant)
        return tuple(names)


class ResultsSection(Section):
    """The results of queued requests."""

    keep: Milliseconds = 24 * 3_600_000.0
    """How long a queued request's result can be fetched. Example: ``24h``"""


class DefaultsSection(Section):
    """What holds where a request does not say: its budget, and how long a queued call is held open."""

    budget: BudgetMs = 1_000.0
    """The latency budget of a request that names none. Example: ``1s``"""
    hold: Milliseconds = 20_000.0
    """How long a call that waits for a queued result is held open. Example: ``20s``"""
    results: ResultsSection = ResultsSection()
    """What happens to results. Example: ``{keep: 24h}``"""


class QueueLimits(Section):
    """The bounds of each model's queue; beyond them requests are refused."""

    jobs: Annotated[int, Field(ge=1)] = 1_000_000
    """The most jobs in each model's queue. Example: ``1000000``"""
    bytes: Bytes = 4 << 30
    """The most bytes in each model's queue. Example: ``4GiB``"""


class LimitsSection(Section):
    """Bounds that hold before memory or work is spent."""

    body: Bytes = 16 << 20
    """The largest body of a request. Example: ``16MiB``"""
    rows: Annotated[int, Field(ge=1)] = 4096
    """The most rows of a request. Example: ``4096``"""
    queue: QueueLimits = QueueLimits()
    """The bounds of each model's queue. Example: ``{jobs: 1000000, bytes: 4GiB}``"""
    tenant: TenantLimits = TenantLimits()
    """What each tenant may ask for that has no limit of its own, callers without a tenant included.
    Example: ``{rate: 20/s}``"""


class LogsSection(Section):
    """The log of requests: what share of those that went well is written. All others are."""

    share: Share = 0.01
    """The share of the requests that went well which is logged. All others are. Example: ``1%``"""


class CorsSection(Section):
    """Pages of which origins may call the server from a browser; by default none but its own.

    An origin is scheme, host and port, as ``https://app.example``; ``*`` allows every page. Cookies and other
    credentials of the browser are never asked for: a page sends its API key in a header.
    """

    origins: Annotated[tuple[Origin, ...], Field(max_length=100)] = ()
    """Pages that may call the server from a browser, by origin; `*` allows every page. Example:
    ``[https://app.example]``"""


class RedisSection(Section):
    """The queue's server: a URL, or the bundled server with its data in a folder (by default
    ``var/hybrid-router/queue`` below the current one). A URL with a password stands elsewhere:
    ``file:/path/to/it`` or ``env:NAME``.

    Deployments that share a server need a ``namespace`` each, or they answer each other's jobs: all keys
    begin with it.
    """

    url: str | None = Field(default=None, repr=False)
    """The server's URL; one with a password is in a file or in the environment. Example:
    ``file:/run/secrets/redis``"""
    namespace: Name = "hr"
    """What every key begins with. Deployments that share a server need one each. Example: ``hr``"""
    data: Path | None = None
    """The folder of the bundled server's data. Example: ``/var/lib/hybrid-router``"""
    fsync: Literal["always", "everysec"] = "always"
    """When accepted jobs reach the disk of the bundled server: before the answer, or every second.
    Example: ``always``"""

    @field_validator("url")
    @classmethod
    def _shown_to_all(cls, url: str | None) -> str | None:
        if url is not None and holds_password(url):
            raise ValueError(URL_ELSEWHERE)
        return url
