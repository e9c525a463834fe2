"""The routing policy: a YAML file becomes one frozen `Policy`, or an error that says where it is wrong.

Reading is the only I/O here; a `Policy` is a value. Relative paths count from the working directory.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
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


class PolicyError(ValueError):
    """A policy that cannot be used. ``problems`` holds one line each: file, line, key, and the mend."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


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

#: What pydantic puts between the keys of an error's place.
_NO_KEYS = frozenset({"[key]", "[number]", "[range]"})


def read(path: str | Path) -> Policy:
    """The policy in a file. Raises `PolicyError` with file, line and key of each problem."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise PolicyError([f"{path}: cannot read the policy file: {reason}"]) from None
    return parse(text, str(path))


def parse(text: str, source: str = "policy") -> Policy:
    """The policy in a text; ``source`` names it in errors."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: a date that is none, such as 2026-13-01.
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise PolicyError([f"{where}: not valid YAML: {problem}"]) from None
    duplicates = [f"{source}:{line}: key {key!r} is given twice" for key, line in _duplicate_keys(root)]
    if duplicates:
        raise PolicyError(duplicates)
    if not isinstance(document, dict):
        raise PolicyError([f"{source}: a policy is a mapping with 'models' and 'routes'"])
    try:
        return Policy.model_validate(document)
    except ValidationError as error:
        errors: list[dict[str, Any]] = [
            {**found, "loc": tuple(part for part in found["loc"] if part not in _NO_KEYS)}
            for found in error.errors()
        ]
        misspelt = {_intended(e) for e in errors}
        # A misspelt key is one mistake: that the right one is missing follows from it.
        shown = [e for e in errors if e["type"] != "missing" or tuple(e["loc"]) not in misspelt]
        raise PolicyError([_problem(source, root, e) for e in shown]) from None


def _duplicate_keys(root: yaml.Node | None) -> Iterator[tuple[str, int]]:
    nodes, visited = [root], set[int]()
    while nodes:
        node = nodes.pop()
        if id(node) in visited:  # an alias
            continue
        visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if key.value in seen:
                    yield key.value, key.start_mark.line + 1
                seen.add(key.value)
                nodes.append(value)
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value


def _intended(error: Any) -> tuple[Any, ...] | None:
    """The place of the key that an unknown one was probably meant to be."""
    if error["type"] != "extra_forbidden":
        return None
    *parents, key = error["loc"]
    close = difflib.get_close_matches(str(key), _fields_at(parents), n=1)
    return (*parents, close[0]) if close else None


def _problem(source: str, root: yaml.Node | None, error: Any) -> str:
    """One pydantic error as ``file:line: key: what is wrong; how to mend it``."""
    loc = list(error["loc"])
    line, path = _locate(root, loc)
    where = f"{source}:{line}: {'.'.join(map(str, path)) or 'policy'}"
    if error["type"] == "extra_forbidden":
        meant = _intended(error)
        hint = f"did you mean {meant[-1]!r}?" if meant else f"known here: {', '.join(_fields_at(loc[:-1]))}"
        return f"{where}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{where}: missing; it must be given"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    if isinstance(given, str | int | float) and repr(given) not in message and error["type"] != "value_error":
        message += f", got {given!r}"
    return f"{where}: {message}"


def _locate(root: yaml.Node | None, loc: Sequence[Any]) -> tuple[int, list[Any]]:
    """The line of the deepest part of ``loc`` that stands in the file, and the path as keys and indexes."""
    node, path = root, list[Any]()
    line = root.start_mark.line + 1 if root else 1
    for part in loc:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next(((k.start_mark, v) for k, v in node.value if k.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = (node.value[part].start_mark, node.value[part])
        path.append(part)
        if found is None:
            break
        line, node = found[0].line + 1, found[1]
    return line, path


def _fields_at(loc: Sequence[Any]) -> list[str]:
    """The keys known at a place in the policy, found by walking the models' annotations."""
    here: Any = Policy
    for part in loc:
        section = _section_in(here)
        if get_origin(here) in (dict, tuple):  # the part is a name or an index, not a field
            here = section
        else:
            here = section.model_fields[part].annotation if section and part in section.model_fields else None
    section = _section_in(here)
    return sorted(section.model_fields) if section is not None else []


def _section_in(annotation: Any) -> Any:
    """The section class inside ``X | None``, ``tuple[X, ...]`` or ``dict[str, X]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section_in(inner)
        if found is not None:
            return found
    return None
