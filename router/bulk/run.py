"""One bulk run: read, send, write in order, with a bounded number of chunks in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from router.bulk.disk import Disk
from router.bulk.errors import InputError
from router.bulk.plan import Order
from router.bulk.send import BulkPlan
from router.bulk.source import open_source
from router.bulk.store import Paths, Store
from router.sdk.async_client import AsyncClient
from router.sdk.codec import ModelInfo


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
                plan = BulkPlan(client._core, model, order, store.ledger, deadline)
                chunks = source.chunks(written.rows, order.rows_per_request)
                async with aclosing(client._run_plan(plan, chunks, order.concurrency)) as results:
                    async for settled in results:
                        store.append(settled)
                        tally.rows, tally.failed = settled.stop, store.written.failed
                        tally.position, tally.late = settled.position, plan.late
                        report(tally)
        store.finish()
        return tally
    finally:
        store.close()
