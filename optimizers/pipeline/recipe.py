"""What to make of a model: named variants, each a chain of passes, and the goals they should meet.

:mod:`optimizers.pipeline.recipe_file` reads all of this from YAML; the specs of passes stand with their
techniques in :mod:`optimizers.passes`. A spec whose result depends on anything but its fields, its input
model, the data and the seed would break the cache, which is keyed by those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optimizers.formats.errors import RecipeError as RecipeError
from optimizers.passes.technique import PassSpec as PassSpec
from optimizers.runner import RUNTIMES, runtime_names


@dataclass(frozen=True)
class Goal:
    """A bound on a measured figure of a variant; just one of ``at_most`` and ``at_least``.

    Figures: ``<metric>``, ``quality_drop``, ``fidelity``, ``size_ratio`` (original over variant),
    ``speedup_<n>`` (original's median at batch n over the variant's), ``latency_ms_<n>``,
    ``size_bytes``, ``sparsity``.
    """

    figure: str
    at_most: float | None = None
    at_least: float | None = None

    def __post_init__(self) -> None:
        if (self.at_most is None) == (self.at_least is None):
            raise RecipeError(f"goal {self.figure!r}: give either at_most or at_least")

    def holds(self, value: float) -> bool:
        if math.isnan(value):
            return False
        return value <= self.at_most if self.at_most is not None else value >= (self.at_least or 0.0)

    def shortfall(self, value: float) -> float:
        """How far ``value`` is from meeting the goal, relative to the bound; 0 where it holds."""
        if self.holds(value):
            return 0.0
        bound = self.at_most if self.at_most is not None else self.at_least
        return abs(value - (bound or 0.0)) / max(abs(bound or 0.0), 1e-9)

    def __str__(self) -> str:
        sign, bound = ("at most", self.at_most) if self.at_most is not None else ("at least", self.at_least)
        return f"{self.figure} {sign} {bound:g}"


@dataclass(frozen=True)
class Search:
    """Try values of one pass's fields, in the order given, until the goals hold or tries run out.

    ``step`` counts the variant's passes from 0. Every combination of ``values`` is a candidate. They
    are judged on the validation data; the variant that is kept is then measured like any other.
    """

    step: int = 0
    values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    tries: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.tries <= 1000:
            raise RecipeError(f"must be from 1 to 1000, not {self.tries}", "tries")
        if not self.values or any(not v for v in self.values.values()):
            raise RecipeError("name at least one field and at least one value for each", "values")


@dataclass(frozen=True)
class Variant:
    """One variant: its passes in order, the runtime it is packed for, and that runtime's settings."""

    name: str
    passes: tuple[PassSpec, ...] = ()
    runtime: str = ""
    threads: int = 1
    device: str = "cpu"
    compile: bool = False
    goals: tuple[Goal, ...] = ()
    search: Search | None = None

    def __post_init__(self) -> None:
        if self.runtime and self.runtime not in RUNTIMES and self.runtime not in runtime_names():
            raise RecipeError(f"{self.runtime!r} is not one of {', '.join(runtime_names())}", "runtime")
        if self.threads < 1:
            raise RecipeError(f"must be 1 or more, not {self.threads}", "threads")
        if self.device not in ("cpu", "cuda"):
            raise RecipeError(f"{self.device!r} is neither cpu nor cuda", "device")
        if self.search and not 0 <= self.search.step < len(self.passes):
            raise RecipeError(
                f"{self.search.step} is no pass; there are {len(self.passes)}, from 0", "search", "step"
            )


@dataclass(frozen=True)
class Latency:
    """How latency is measured: which batch sizes (rows), and about how long in all, per variant."""

    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if not self.batches or list(self.batches) != sorted(set(self.batches)) or self.batches[0] != 1:
            raise RecipeError("whole numbers that ascend from 1", "batches")
        if not 0 < self.seconds <= 3600:
            raise RecipeError(f"must be in (0, 3600], not {self.seconds}", "seconds")


@dataclass(frozen=True)
class Recipe:
    """Everything that :func:`optimizers.pipeline.pipeline.run` needs, apart from where to write.

    ``task`` is ``module:function``, which gives an :class:`optimizers.task.Task`; it runs that code,
    so a recipe deserves the trust of a program. ``data`` is a folder of data files for tasks that take
    one, or empty. The variant ``original`` names is what the others
    are compared with: the first without passes.
    """

    name: str
    task: str
    variants: tuple[Variant, ...]
    goals: tuple[Goal, ...] = ()
    latency: Latency = field(default_factory=Latency)
    seed: int = 0
    data: str = ""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise RecipeError(f"must be 0 or more, not {self.seed}", "seed")
        names = [v.name for v in self.variants]
        if len(names) != len(set(names)):
            raise RecipeError(f"a name stands twice in {names}", "variants")
        if not any(not v.passes for v in self.variants):
            raise RecipeError(
                "one without passes must be there, to compare the others with; add float32: {}", "variants"
            )

    @property
    def original(self) -> Variant:
        """The variant that the others are compared with: the first without passes."""
        return next(v for v in self.variants if not v.passes)
