"""Shadow runs: a share of the online requests runs on a second variant too, and the answers are compared.

The caller has its answer already. A shadow is droppable and its deadline far away, so that it goes where
there is time and yields to everything else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import numpy as np

from optimizers.tensors import Array
from router.online.dispatcher import DeadlineHopeless, DispatchError, HeapFull
from router.scheduling.admission import RunOnline
from router.service.metrics import Recorder
from router.service.requests import InferenceRequest, ServedModel

#: More than these at once are skipped: a variant that cannot keep up must not fill the memory.
MAX_RUNS = 64
_BUDGETS = 10.0
_LEAST_MS = 1_000.0
_RELATIVE, _ABSOLUTE = 1e-2, 1e-3


def deadline_ms(now_ms: float, budget_ms: float) -> float:
    """Until when a shadow that starts now may wait for its turn."""
    return now_ms + max(_LEAST_MS, _BUDGETS * budget_ms)


class ShadowRuns:
    """The shadows of one router that are under way."""

    def __init__(self, recorder: Recorder, clock: Callable[[], float]) -> None:
        self._recorder, self._clock = recorder, clock
        self._tasks: set[asyncio.Task[None]] = set()

    def start(
        self,
        served: ServedModel,
        request: InferenceRequest,
        decision: RunOnline,
        outputs: Mapping[str, Array],
        variant: str,
    ) -> None:
        """Run ``request`` on ``variant`` as well, beside what gave ``outputs``. Counted when it has ended."""
        if len(self._tasks) >= MAX_RUNS:
            self._recorder.shadow(request.model, decision.route, variant, "skipped")
            return
        task = asyncio.create_task(self._run(served, request, decision, outputs, variant))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(
        self,
        served: ServedModel,
        request: InferenceRequest,
        decision: RunOnline,
        outputs: Mapping[str, Array],
        variant: str,
    ) -> None:
        assert served.online is not None
        try:
            until_ms = deadline_ms(self._clock(), request.budget_ms)
            other = await served.online.run(variant, request.inputs, until_ms)
            outcome = "same" if alike(outputs, other.outputs) else "different"
        except (DeadlineHopeless, HeapFull):
            outcome = "skipped"
        except DispatchError:
            outcome = "failed"
        self._recorder.shadow(request.model, decision.route, variant, outcome)

    async def close(self) -> None:
        """End what still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def alike(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    """Whether two answers say the same, each array ``(rows, ...)``.

    Scores (floats, two or more in the last axis) agree where the largest is in the same place in every row;
    single floats within 1%; whole numbers, booleans and texts where they are equal.
    """
    return one.keys() == other.keys() and all(_alike(array, other[name]) for name, array in one.items())


def _alike(one: Array, other: Array) -> bool:
    if one.shape != other.shape:
        return False
    # BF16 is kind V.
    if one.dtype.kind not in "fV":
        return bool(np.array_equal(one, other))
    first, second = one.astype(np.float64), other.astype(np.float64)
    if one.ndim > 1 and one.shape[-1] > 1:
        return bool(np.array_equal(first.argmax(-1), second.argmax(-1)))
    return bool(np.allclose(first, second, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True))
