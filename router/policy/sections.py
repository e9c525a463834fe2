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


class Shadow(Section):
    """A share of the online requests also runs on ``variant``, after their callers have been answered;
    whether the two agree is counted (``hybrid_shadow_total``)."""

    variant: Name
    share: Share = 0.1


class Route(Section):
    """Where requests that match go, and what to do when the deadline is predicted to be missed.

    ``variants`` narrows the model's variants; ``split`` draws the variant to be tried first by weight, for
    canaries. ``margin`` asks for so much more time than predicted before a deadline counts as met.
    """

    name: Name
    when: When = When()
    to: Literal["online", "batch", "auto"]
    variants: Names | None = None
    quality: Quality | None = None
    margin: Surcharge = 0.0
    split: dict[Name, Annotated[float, Field(ge=0, le=1e6)]] | None = None
    shadow: Shadow | None = None
    on_miss: tuple[Literal["degrade", "reject"], ...] = ("degrade", "reject")

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


class OnlineSection(Section):
    """Online replicas: each holds every variant listed, best first or in any order.

    ``in_time`` is the share of the accepted requests that are to be answered in time, 99.9% for example.
    Those that have work ahead of them are accepted with time to spare then, and more are refused at once;
    without it whatever is predicted in time is accepted.

    ``in_router`` makes each router run the model itself, instead of calling replicas: for models so small
    that a call to another process takes longer than they do.

    ``ready_within`` is how long the warm-up may take before `serve` gives up. ``hung_after`` is how long one
    batch may compute, or be blocked, before its replica is replaced; waiting for a processor does not count.
    By default both follow from the variants' latency profiles, and are 60 s and 30 s at least.
    """

    variants: Annotated[tuple[Name, ...], Field(min_length=1)]
    in_router: bool = False
    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    max_batch: Annotated[int, Field(ge=1, le=65536)] = 64
    max_waiting: Annotated[int, Field(ge=1)] = 10_000
    in_time: Confidence = 0.0
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    ready_within: Annotated[Milliseconds, Field(gt=0)] | None = None
    hung_after: Annotated[Milliseconds, Field(gt=0)] | None = None
    rescue: RescueSection = RescueSection()

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
    max: Annotated[int, Field(ge=1, le=1000)]
    idle: Milliseconds = 30_000.0

    @model_validator(mode="after")
    def _ordered(self) -> WorkerRange:
        if self.min > self.max:
            raise ValueError(f"min is {self.min} and max {self.max}; write min <= max")
        return self


class BatchSection(Section):
    """Batch workers that drain the model's queue: a number of them, or a range to scale in.

    ``hung_after`` is how long one batch may compute, or be blocked, before its worker is replaced; waiting
    for a processor does not count. By default it follows from the variant's latency profile, and is 30 s at
    least.
    """

    variant: Name
    workers: Annotated[
        Annotated[int, Field(ge=1, le=1000), Tag("[number]")] | Annotated[WorkerRange, Tag("[range]")],
        Discriminator(lambda given: "[range]" if isinstance(given, dict | WorkerRange) else "[number]"),
    ] = 1
    max_batch: Annotated[int, Field(ge=1, le=65536)] = 256
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    lease: Milliseconds = 30_000.0
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    hung_after: Annotated[Milliseconds, Field(gt=0)] | None = None
    sched_idle: bool = True

    @property
    def worker_count(self) -> int:
        """The most workers that there can be: what predictions count on, since work calls them."""
        return self.workers if isinstance(self.workers, int) else self.workers.max


class ModelSection(Section):
    """One model: where its variants lie, and how they are served."""

    artifacts: Path
    online: OnlineSection | None = None
    batch: BatchSection | None = None

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
    keep: Milliseconds = 24 * 3_600_000.0


class DefaultsSection(Section):
    """What holds where a request does not say: its budget, and how long a queued call is held open."""

    budget: BudgetMs = 1_000.0
    hold: Milliseconds = 20_000.0
    results: ResultsSection = ResultsSection()


class QueueLimits(Section):
    jobs: Annotated[int, Field(ge=1)] = 1_000_000
    bytes: Bytes = 4 << 30


class LimitsSection(Section):
    """Bounds that hold before memory or work is spent."""

    body: Bytes = 16 << 20
    rows: Annotated[int, Field(ge=1)] = 4096
    queue: QueueLimits = QueueLimits()
    #: What each tenant may ask for that does not have a limit of its own, callers without one included.
    tenant: TenantLimits = TenantLimits()


class LogsSection(Section):
    """The log of requests: what share of those that went well is written. All others are."""

    share: Share = 0.01


class CorsSection(Section):
    """Pages of which origins may call the server from a browser; by default none but its own.

    An origin is scheme, host and port, as ``https://app.example``; ``*`` allows every page. Cookies and other
    credentials of the browser are never asked for: a page sends its API key in a header.
    """

    origins: Annotated[tuple[Origin, ...], Field(max_length=100)] = ()


class RedisSection(Section):
    """The queue's server: a URL, or the bundled server with its data in a folder (by default
    ``var/hybrid-router/queue`` below the current one). A URL with a password stands elsewhere:
    ``file:/path/to/it`` or ``env:NAME``.

    Deployments that share a server need a ``namespace`` each, or they answer each other's jobs: all keys
    begin with it.
    """

    url: str | None = Field(default=None, repr=False)
    namespace: Name = "hr"
    data: Path | None = None
    fsync: Literal["always", "everysec"] = "always"

    @field_validator("url")
    @classmethod
    def _shown_to_all(cls, url: str | None) -> str | None:
        if url is not None and holds_password(url):
            raise ValueError(URL_ELSEWHERE)
        return url
