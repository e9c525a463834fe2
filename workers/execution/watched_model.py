"""A model each of whose calls is watched, so that one that hangs is told from one that works or starves."""

from __future__ import annotations

from collections.abc import Callable

from optimizers.profile import LatencyProfile
from optimizers.tensors import Tensors, rows_of
from workers.execution.model_thread import Model
from workers.execution.work_limits import WorkLimit
from workers.execution.work_watch import WorkWatch


class WatchedModel:
    """A :class:`workers.execution.model_thread.Model`; ``limit`` gives a batch's limit by its predicted time
    in ms.

    Each call is a piece of work of its own, because a failing batch that is run again in parts takes long.
    """

    def __init__(
        self, model: Model, watch: WorkWatch, limit: Callable[[float], WorkLimit], load_limit: WorkLimit
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
