"""What a routing policy says, section by section. A `Policy` is a value; relative paths count from the
working directory."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)

from router import units


def _written(what: str, pattern: str) -> WithJsonSchema:
    """How an editor shows a quantity: as people write it, not as it is kept."""
    text = {"type": "string", "pattern": pattern}
    return WithJsonSchema({"anyOf": [text, {"type": "number", "minimum": 0}], "description": what})


_DURATION = _written("50ms, 2s, 10min, 2h; a number is seconds", r"^\s*[0-9.]+\s*(us|ms|s|sec|m|min|h|d)\s*$")
_SIZE = _written("512KiB, 16MiB, 4GB; a number is bytes", r"^\s*[0-9.]+\s*([kKmMgG]i?)?[bB]?\s*$")
Milliseconds = Annotated[float, BeforeValidator(units.duration_ms), _DURATION]
BudgetMs = Annotated[float, BeforeValidator(units.budget_ms), _DURATION]
Bytes = Annotated[int, BeforeValidator(units.size_bytes), _SIZE]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]

_COMPARISON = re.compile(r"\s*(<=|>=|<|>)\s*([^<>=,]+?)\s*")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


class Section(BaseModel):
    """A part of the policy file: unknown keys are errors, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BudgetRange(Section):
    """Bounds on a latency budget, written ``"<= 250ms"`` or ``"> 250ms, <= 30s"``."""

    text: str
    bounds: tuple[tuple[Literal["<", "<=", ">", ">="], float], ...]

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not a bound on the budget; write '<= 250ms' or '> 250ms, <= 30s'")
        bounds = []
        for part in value.split(","):
            match = _COMPARISON.fullmatch(part)
            if not match:
                raise ValueError(f"{part.strip()!r} is not a bound; write <, <=, > or >= and a duration")
            bounds.append((match[1], units.duration_ms(match[2])))
        return {"text": value, "bounds": tuple(bounds)}

    def holds(self, budget_ms: float) -> bool:
        return all(_COMPARE[sign](budget_ms, bound) for sign, bound in self.bounds)


class When(Section):
    """The conditions of a route; all that are given must hold."""

    budget: BudgetRange | None = None
    model: Annotated[tuple[str, ...] | None, BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)] = (
        None
    )

    def holds(self, model: str, budget_ms: float) -> bool:
        if self.model is not None and model not in self.model:
            return False
        return self.budget is None or self.budget.holds(budget_ms)


class Quality(Section):
    """How much worse than the original an answer's variant may be, in the manifest's quality metric."""

    max_drop: Annotated[float, Field(ge=0, le=1)]


class Route(Section):
    """Where requests that match go, and what to do when the deadline is predicted to be missed."""

    name: Name
    when: When = When()
    to: Literal["online", "batch", "auto"]
    quality: Quality | None = None
    on_miss: tuple[Literal["degrade", "reject"], ...] = ("degrade", "reject")


class Rescue(Section):
    """How much of a model's online time may go to queued jobs that would be late; 0 gives them none."""

    share: Annotated[float, Field(ge=0, le=1)] = 0.1


class Online(Section):
    """Online replicas: each holds every variant listed, best first or in any order."""

    variants: Annotated[tuple[Name, ...], Field(min_length=1)]
    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    max_batch: Annotated[int, Field(ge=1, le=65536)] = 64
    max_waiting: Annotated[int, Field(ge=1)] = 10_000
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    rescue: Rescue = Rescue()


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


class Batch(Section):
    """Batch workers that drain the model's queue: a number of them, or a range to scale in."""

    variant: Name
    workers: Annotated[
        Annotated[int, Field(ge=1, le=1000), Tag("[number]")] | Annotated[WorkerRange, Tag("[range]")],
        Discriminator(lambda given: "[range]" if isinstance(given, dict | WorkerRange) else "[number]"),
    ] = 1
    max_batch: Annotated[int, Field(ge=1, le=65536)] = 256
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    lease: Milliseconds = 30_000.0
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    sched_idle: bool = True

    @property
    def worker_count(self) -> int:
        """The most workers that there can be: what predictions count on, since work calls them."""
        return self.workers if isinstance(self.workers, int) else self.workers.max


class Model(Section):
    """One model: where its variants lie, and how they are served."""

    artifacts: Path
    online: Online | None = None
    batch: Batch | None = None

    @model_validator(mode="after")
    def _served(self) -> Model:
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


class Results(Section):
    keep: Milliseconds = 24 * 3_600_000.0


class Defaults(Section):
    """What holds where a request does not say: its budget, and how long a queued call is held open."""

    budget: BudgetMs = 1_000.0
    hold: Milliseconds = 20_000.0
    results: Results = Results()


class QueueLimits(Section):
    jobs: Annotated[int, Field(ge=1)] = 1_000_000
    bytes: Bytes = 4 << 30


class Limits(Section):
    """Bounds that hold before memory or work is spent."""

    body: Bytes = 16 << 20
    rows: Annotated[int, Field(ge=1)] = 4096
    queue: QueueLimits = QueueLimits()


class RedisSection(Section):
    """The queue's server: a URL, or the bundled server with its data in a folder."""

    url: str | None = Field(default=None, repr=False)
    data: Path = Path("build/queue")
    fsync: Literal["always", "everysec"] = "always"


class Policy(Section):
    """The whole file. Routes are tried in order; a request that none takes goes to ``auto``."""

    models: Annotated[dict[Name, Model], Field(min_length=1)]
    routes: tuple[Route, ...] = ()
    defaults: Defaults = Defaults()
    limits: Limits = Limits()
    redis: RedisSection = RedisSection()

    @model_validator(mode="after")
    def _consistent(self) -> Policy:
        seen: set[str] = set()
        for route in self.routes:
            if route.name in seen:
                raise ValueError(f"two routes are named {route.name!r}; give each its own name")
            seen.add(route.name)
            for model in route.when.model or ():
                if model not in self.models:
                    raise ValueError(f"route {route.name!r} names model {model!r}, which is not in 'models'")
        return self

    @property
    def queued_models(self) -> tuple[str, ...]:
        return tuple(name for name, model in self.models.items() if model.batch)

    @property
    def queue_settings(self) -> dict[str, Any]:
        """Fields of `workers.queue.QueueSettings` on which all who use a queue must agree."""
        limits = self.limits.queue
        return {
            "max_jobs": limits.jobs,
            "max_bytes": limits.bytes,
            "keep_ms": int(self.defaults.results.keep),
        }

    def route(self, model: str, budget_ms: float) -> Route:
        """The first route whose conditions hold, or the implicit last one."""
        for route in self.routes:
            if route.when.holds(model, budget_ms):
                return route
        return DEFAULT_ROUTE


DEFAULT_ROUTE = Route(name="default", to="auto")
