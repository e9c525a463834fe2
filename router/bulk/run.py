"""One bulk run: read, send, write in order, with a bounded number of chunks in between."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from router.bulk.chunks import Settled
from router.bulk.disk import Disk
from router.bulk.errors import InputError
from router.bulk.plan import Order
from router.bulk.send import Sender
from router.bulk.source import RowSource, open_source
from router.bulk.store import Paths, Store
from router.sdk.async_client import AsyncClient
from router.sdk.codec import ModelInfo
from router.sdk.deadline import Deadline

#: Chunks in memory for each that is with the server, so that a slow one at the head holds up no other.
_WINDOW = 2


@dataclass(slots=True)
class BulkProgress:
    """How far a run is. Rows count from the beginning of FILE; ``resumed_at`` were there before."""

    rows: int
    failed: int
    resumed_at: int
    total: int | None = None
    position: float = 0.0
    late: int = 0


Report = Callable[[BulkProgress], None]


def check(order: Order, model: ModelInfo) -> None:
    """Raises InputError for options that the model does not have."""
    if order.variant is not None and order.variant not in model.versions:
        raise InputError(
            f"model {model.name!r} has no variant {order.variant!r}; it has {', '.join(model.versions)}"
        )
    known = [spec.name for spec in model.outputs]
    for name in order.outputs:
        if name not in known:
            raise InputError(f"model {model.name!r} has no output {name!r}; it has {', '.join(known)}")
    for path in Paths(order.results).all():
        if path.absolute() == order.source.absolute():
            raise InputError(f"FILE and RESULTS are both {path}")


async def run(
    client: AsyncClient,
    model: ModelInfo,
    order: Order,
    *,
    report: Report,
    restart: bool = False,
    disk: Disk | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> BulkProgress:
    """Run ``order`` to its end, or from where an earlier process left it, and tell how it went.

    Raises BulkError, or the HybridRouterError that ended it; what is written stays, and the same call
    goes on from there. Cancelling it leaves what the server has taken with the server.
    """
    check(order, model)
    source = open_source(order.source, model, order.header)
    wanted = [spec for spec in model.outputs if not order.outputs or spec.name in order.outputs]
    store = Store(
        Paths(order.results), order.identity(), wanted, disk=disk or Disk(), restart=restart, clock=clock
    )
    try:
        written = store.written
        tally = BulkProgress(written.rows, written.failed, written.rows, source.total)
        report(tally)
        if not store.ledger.finished:
            with client.deadline(order.budget) as deadline:
                await _Flow(client, model, order, store, source, deadline).run(tally, report)
        store.finish()
        return tally
    finally:
        store.close()


class _Flow:
    """The chunks between FILE and RESULTS."""

    def __init__(
        self,
        client: AsyncClient,
        model: ModelInfo,
        order: Order,
        store: Store,
        source: RowSource,
        deadline: Deadline,
    ) -> None:
        self._store, self._order = store, order
        self._sender = Sender(client, model, order, store.ledger, deadline)
        self._chunks = source.chunks(store.written.rows, order.rows_per_request)
        self._window: deque[asyncio.Task[Settled]] = deque()

    async def run(self, tally: BulkProgress, report: Report) -> None:
        try:
            while self._fill():
                settled = await self._window[0]
                self._window.popleft()
                self._store.append(settled)
                tally.rows, tally.failed = settled.stop, self._store.written.failed
                tally.position, tally.late = settled.position, self._sender.late
                report(tally)
        finally:
            for task in self._window:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*self._window, return_exceptions=True)

    def _fill(self) -> bool:
        """Take chunks until the window is full; whether there is anything to wait for."""
        while len(self._window) < self._order.concurrency * _WINDOW:
            raw = next(self._chunks, None)
            if raw is None:
                break
            self._window.append(asyncio.create_task(self._sender.settle(raw)))
        return bool(self._window)
