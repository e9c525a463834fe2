"""``hybrid-router submit``: a file of rows through the server, with the answers in a file beside it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from optimizers.files.outputs import OutputPath
from router.bulk.errors import BulkError
from router.bulk.plan import Order
from router.bulk.progress import reporter
from router.bulk.run import BulkProgress, Report, run
from router.bulk.store import Paths
from router.cli.client import completion, show
from router.cli.common import (
    EXIT_CODES,
    INTERRUPTED,
    ROWS_FAILED,
    budget,
    code_of,
    connect,
    connection,
    exit_codes,
    fail,
    header,
    usage_errors,
)
from router.sdk.async_client import AsyncClient
from router.sdk.errors import HybridRouterError

#: A server that is restarted is waited for this long; what it has taken is still there.
_RETRY_FOR = "5min"


@click.command(epilog=EXIT_CODES)
@click.argument("model", shell_complete=completion.models)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--budget", required=True, callback=budget, help="Time for all of FILE, such as 2h.")
@click.option("--out", required=True, type=OutputPath(), help="RESULTS.")
@click.option("--variant", shell_complete=completion.variants, help="Run on this variant and no other.")
@click.option(
    "--output",
    "outputs",
    multiple=True,
    metavar="NAME",
    shell_complete=completion.outputs,
    help="Only this output (repeatable).",
)
@header
@click.option("--rows-per-request", default=64, show_default=True, type=click.IntRange(1, 1_000_000))
@click.option(
    "--concurrency", default=16, show_default=True, type=click.IntRange(1, 256), help="Requests in flight."
)
@click.option("--restart", is_flag=True, help="Begin anew; replaces RESULTS.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object on standard output.")
@connection
def submit(
    model: str,
    file: Path,
    budget: str,
    out: Path,
    variant: str | None,
    outputs: tuple[str, ...],
    header: bool | None,
    rows_per_request: int,
    concurrency: int,
    restart: bool,
    quiet: bool,
    as_json: bool,
    url: str,
    key: str | None,
) -> None:
    """Run MODEL on every row of FILE and write the answers to RESULTS, in the order of the rows.

    \b
    Examples:
      hybrid-router submit digits images.npy --budget 2h --out labels.csv --output label
      hybrid-router submit intents questions.jsonl --budget 30min --out intents.jsonl

    \b
    FILE, by its suffix:
      .jsonl     a line per row: an object of inputs by name, or the bare value of the only input
      .csv       a header naming the inputs; or, for a model with one input, its elements in order
                 (--header says if the first line is names, where it does not show)
      .parquet   columns likewise; needs pip install 'hybrid-router[parquet]'
      .npy       one array with the rows on its first axis

    \b
    RESULTS, by its suffix:
      .jsonl     {"row": 0, "outputs": {...}, "variant": "int8"}; rows count from 0
      .csv       columns row, variant and the outputs, vectors as name_0, name_1, ...
      .parquet   the same, vectors as lists
      .npy       one output (--output), one row for each row of FILE; a failed row holds NaN or, in
                 whole numbers, the least (of unsigned ones the largest)

    Rows that fail or cannot be read are written to RESULTS.failed.jsonl with their reasons, and only
    they: a request that fails is sent again by halves until the rows at fault are alone.

    Interrupt it, kill it, and run the same command again: it goes on where it was. What the server has
    taken goes on in the meantime; nothing is sent twice. RESULTS.ledger holds what that takes, and is
    removed at the end.
    """
    order = Order(model, file, out, budget, variant, outputs, rows_per_request, concurrency, header)
    begun_s = time.monotonic()
    with exit_codes():
        with connect(url, key, retry_for="2s") as client:
            info = client.model(model)
        with usage_errors():
            bulk = AsyncClient(url, key=key, retry_for=_RETRY_FOR)

        async def work(report: Report) -> BulkProgress:
            async with bulk:
                with _interruptible():
                    return await run(bulk, info, order, report=report, restart=restart)

        progress = Followed()
        try:
            with reporter(sys.stderr, model, time.monotonic, quiet=quiet) as report:
                tally = asyncio.run(work(progress.follow(report)))
        except (asyncio.CancelledError, KeyboardInterrupt):
            fail(f"interrupted {progress.state(order)}", INTERRUPTED)
        except (HybridRouterError, BulkError) as error:
            if progress.tally is None:
                raise
            fail(f"{error}\nstopped {progress.state(order)}", code_of(error))
    _summarize(tally, order, time.monotonic() - begun_s, as_json)


class Followed:
    """Remembers how far a run got, for what is said when it ends early."""

    def __init__(self) -> None:
        self.tally: BulkProgress | None = None

    def follow(self, report: Report) -> Report:
        def both(tally: BulkProgress) -> None:
            self.tally = tally
            report(tally)

        return both

    def state(self, order: Order) -> str:
        rows = self.tally.rows if self.tally else 0
        return (
            f"with {rows:,} rows in {order.results}; what the server has taken stays with it. "
            "Run the same command again to go on."
        )


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """The first SIGINT or SIGTERM ends the run in order, a second one at once.

    Loops without signal handlers (Windows) have what asyncio.run does: Ctrl-C ends the run in order.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    numbers: list[signal.Signals] = []

    def stop() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
        if task is not None:
            task.cancel()

    with contextlib.suppress(NotImplementedError):
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
            numbers.append(number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _summarize(tally: BulkProgress, order: Order, seconds: float, as_json: bool) -> None:
    done = tally.rows - tally.resumed_at
    failed = Paths(order.results).failed if tally.failed else None
    if as_json:
        show.say_json(
            {
                "rows": tally.rows,
                "failed": tally.failed,
                "late": tally.late,
                "resumed_at": tally.resumed_at,
                "seconds": round(seconds, 3),
                "results": str(order.results),
                "failures": str(failed) if failed else None,
            }
        )
    else:
        rate = f"{done / seconds:,.0f} rows/s" if seconds > 0 else ""
        resumed = f"; {tally.resumed_at:,} were there before" if tally.resumed_at else ""
        click.echo(f"{tally.rows:,} rows in {seconds:.1f} s ({rate}{resumed}): {order.results}", err=True)
        if tally.late:
            click.echo(f"{tally.late:,} of them were answered after their deadline", err=True)
        if failed:
            click.secho(f"{tally.failed:,} rows failed: {failed}", err=True, fg="red")
    if failed:
        raise SystemExit(ROWS_FAILED)
