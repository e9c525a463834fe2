"""What a batch worker runs: the variants of one model, loaded when a job first needs one.

:class:`BatchModel` is the contract, which tests implement too; :class:`ArtifactModel` reads a folder of
artifacts; :class:`WatchedModel` wraps any of them and reports calls that hang.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from optimizers import artifact
from optimizers.profile import LatencyProfile
from optimizers.runner import RunnerError
from optimizers.tensors import Tensors, check, rows_of
from workers.execution.loaded_variant import LoadedVariant
from workers.execution.work_limits import WorkLimit
from workers.execution.work_watch import WorkWatch


class VariantUnavailable(LookupError):
    """A job pins a variant that this worker cannot load. The message says why."""


class BatchModel(Protocol):
    """``load``, ``run`` and ``probe`` are called in the model's thread only."""

    def load(self, variant: str) -> LatencyProfile:
        """Load a variant if it is not loaded yet; its profile. Raises :class:`VariantUnavailable`."""
        ...

    def check(self, variant: str, batch: Tensors) -> int:
        """The rows of a loaded variant's input; raises :class:`optimizers.tensors.TensorError`."""
        ...

    def run(self, variant: str, batch: Tensors) -> Tensors:
        """The outputs of a batch."""
        ...

    def probe(self, variant: str) -> None:
        """Run rows that the variant is known to take; raises the model's error."""
        ...

    def close(self) -> None: ...


class ArtifactModel:
    """The variants in a model's folder (one folder each), loaded when first needed."""

    def __init__(self, artifacts: str, threads: int) -> None:
        self._folder = artifacts
        self._threads = threads
        self._loaded: dict[str, LoadedVariant] = {}

    def load(self, variant: str) -> LatencyProfile:
        if variant not in self._loaded:
            try:
                if not variant or variant != os.path.basename(variant) or variant.startswith("."):
                    raise VariantUnavailable(f"{variant!r} is no variant's name")
                self._loaded[variant] = LoadedVariant(os.path.join(self._folder, variant), self._threads)
            except (artifact.ArtifactError, RunnerError) as error:
                raise VariantUnavailable(f"variant {variant!r} cannot be loaded: {error}") from error
        return self._loaded[variant].profile

    def check(self, variant: str, batch: Tensors) -> int:
        return check(batch, self._loaded[variant].inputs)

    def run(self, variant: str, batch: Tensors) -> Tensors:
        return self._loaded[variant].run(batch)

    def probe(self, variant: str) -> None:
        self._loaded[variant].probe()

    def close(self) -> None:
        for loaded in self._loaded.values():
            loaded.close()
        self._loaded.clear()


class WatchedModel:
    """A :class:`BatchModel` each of whose calls is watched, to tell a model that hangs from one that works or
    waits for a processor. ``limit`` gives a batch's limit by its predicted time in ms.

    Each call is a piece of work of its own, because a failing batch that is run again in parts takes long.
    """

    def __init__(
        self, model: BatchModel, watch: WorkWatch, limit: Callable[[float], WorkLimit], load_limit: WorkLimit
    ) -> None:
        self._model = model
        self._watch = watch
        self._limit = limit
        self._load_limit = load_limit
        self._profiles: dict[str, LatencyProfile] = {}

    def load(self, variant: str) -> LatencyProfile:
        with self._watch.work(f"loading variant {variant!r}", self._load_limit):
            profile = self._profiles[variant] = self._model.load(variant)
        return profile

    def check(self, variant: str, batch: Tensors) -> int:
        return self._model.check(variant, batch)

    def run(self, variant: str, batch: Tensors) -> Tensors:
        rows = rows_of(batch)
        limit = self._limit(self._profiles[variant].bound_ms(max(1, rows)))
        with self._watch.work(f"variant {variant!r} with {rows} rows", limit):
            return self._model.run(variant, batch)

    def probe(self, variant: str) -> None:
        with self._watch.work(
            f"the probe of variant {variant!r}", self._limit(self._profiles[variant].bound_ms(1))
        ):
            self._model.probe(variant)

    def close(self) -> None:
        self._model.close()
