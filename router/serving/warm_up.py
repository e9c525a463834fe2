"""What a router runs of its own accord: each online model is warmed up before it is ready, and probed after.

Models do not wait for each other: one without replicas keeps no other from being warm, or from its probes.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Collection, Mapping
from itertools import count

from optimizers.artifact import Manifest
from optimizers.runtimes.example_row import Example
from optimizers.tensors import pack
from router.online.dispatcher import BadRows, DispatchError, OnlineDispatcher
from router.policy import OnlineSection, Policy
from router.scheduling.probing import probe_within_ms
from router.service.requests import ServedModel

_WARM_UP_CALLS = 5
_RETRY_S, _PROBE_EVERY_S, _REPORT_EVERY_S = 0.2, 0.1, 10.0
_MOST_BYTES = 16 << 20
#: What `ready_within_s` allows for beside the warm-up, and how much slower than measured that may be.
_READY_S, _SLOWER = 60.0, 4.0
_log = logging.getLogger("ray.serve")


def warm_up_sizes(max_batch: int) -> list[int]:
    """The batches, in rows, that every variant runs before its model is warm."""
    return [1] * _WARM_UP_CALLS + [rows for rows in (4, 16, max_batch) if rows <= max_batch]


def ready_within_s(policy: Policy, manifests: Mapping[str, Mapping[str, Manifest]]) -> float:
    """How long a start may take, in seconds, from the moment at which the replicas are there.

    What a model's ``ready_within`` says; without one, as long as the warm-up of all models, which share the
    machine, may take by their profiles on a machine that is four times slower, and a minute.
    """
    sections = {name: model.online for name, model in policy.models.items() if model.online}
    warm_up_ms = sum(
        manifests[name][variant].profile.bound_ms(rows)
        for name, section in sections.items()
        for variant in section.variants
        for rows in warm_up_sizes(section.max_batch)
    )
    derived_s = _READY_S + _SLOWER * warm_up_ms / 1_000.0
    limits = [each.ready_within / 1_000.0 if each.ready_within else derived_s for each in sections.values()]
    return max(limits, default=_READY_S)


class _Warming:
    """One online model, and how far its warm-up is."""

    def __init__(
        self, served: ServedModel, dispatcher: OnlineDispatcher, section: OnlineSection, example: Example
    ) -> None:
        self.served, self.dispatcher, self.example = served, dispatcher, example
        # Rows of an open size may be large: no call is larger than what a caller may send.
        most = max(1, _MOST_BYTES // len(pack(example.row)))
        sizes = warm_up_sizes(min(most, section.max_batch))
        self.calls = [(variant, rows) for variant in section.variants for rows in sizes]
        #: Variants that do not take the example. So it is with zeros; their estimates cannot be probed.
        self.untried: set[str] = set()
        self.done = 0
        self.problem = ""

    @property
    def is_warm(self) -> bool:
        return self.done == len(self.calls)

    async def run(self) -> None:
        """Call every variant at several sizes: connections open, and the profiles learn this machine."""
        for variant, rows in self.calls:
            for _ in count():
                if await self._call(variant, rows):
                    break
                await asyncio.sleep(_RETRY_S)
            self.done += 1

    async def probe(self) -> None:
        """Run one row wherever an estimate has had no news for too long, until cancelled."""
        while True:
            await asyncio.sleep(_PROBE_EVERY_S)
            variant = self.dispatcher.stale_variant(self.untried)
            if variant is None:
                continue
            within_ms = probe_within_ms(self.served.variants[variant].profile.bound_ms(1))
            try:
                async with asyncio.timeout(within_ms / 1_000.0):
                    await self._call(variant, 1)
            except TimeoutError:
                _log.debug("model %s: variant %s gave no answer to a probe", self.served.name, variant)

    async def _call(self, variant: str, rows: int) -> bool:
        try:
            # It is a row of usual size, and teaches nobody what is usual.
            batch = self.example.batch(rows)
            await self.dispatcher.run(variant, batch, float("inf"), droppable=False, row_cost=rows)
        except BadRows as error:
            if self.example.is_real:
                self.problem = f": {error}"
                return False
            # It answers, but zeros are not what it takes: what it does take is not known here.
            self.untried.add(variant)
        except DispatchError as error:
            self.problem = f": {error}"
            return False
        self.problem = ""
        return True

    def describe(self, since_s: float) -> str:
        variant, rows = self.calls[min(self.done, len(self.calls) - 1)]
        return (
            f"model {self.served.name} is not ready after {since_s:.0f} s: {self.done} of {len(self.calls)} "
            f"calls are done, next is variant {variant}, batch of {rows}{self.problem}"
        )


class WarmUp:
    """Warms and probes the models of one router. ``sections`` and ``examples`` have those that are served
    online."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        sections: Mapping[str, OnlineSection],
        examples: Mapping[str, Example],
    ) -> None:
        self._warming = {
            name: _Warming(served, served.online, sections[name], examples[name])
            for name, served in models.items()
            if served.online is not None
        }

    def is_warm(self, model: str) -> bool:
        """Whether every online variant of ``model`` has answered; so it is at once where there is none."""
        warming = self._warming.get(model)
        return warming is None or warming.is_warm

    async def run(self) -> None:
        """Warm every model, then keep its estimates fresh. Ends by a fault only, or when cancelled."""
        started = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            warm_ups = [group.create_task(each.run()) for each in self._warming.values()]
            for each, warm_up in zip(self._warming.values(), warm_ups, strict=True):
                group.create_task(_probe_after(warm_up, each))
            await self._report(warm_ups, started)
            # What is loaded now stays: the collector need not look at it again, nor every 700 allocations.
            gc.collect()
            gc.freeze()
            gc.set_threshold(20_000, 20, 20)
            await asyncio.Event().wait()

    async def _report(self, warm_ups: Collection[asyncio.Task[None]], started: float) -> None:
        """Say how far the models are that are not warm, now and then, until all are."""
        pending = set(warm_ups)
        while pending:
            _, pending = await asyncio.wait(pending, timeout=_REPORT_EVERY_S)
            for each in self._warming.values():
                if not each.is_warm:
                    _log.warning("%s", each.describe(asyncio.get_running_loop().time() - started))


async def _probe_after(warm_up: asyncio.Task[None], warming: _Warming) -> None:
    await asyncio.wait([warm_up])
    await warming.probe()
