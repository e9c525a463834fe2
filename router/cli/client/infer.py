"""``hybrid-router infer`` and ``hybrid-router result``: one request, and one that was sent before."""

from __future__ import annotations

import click

from router.cli.client import completion, read, show
from router.cli.common import (
    EXIT_CODES,
    PENDING,
    budget,
    code_of,
    connect,
    connection,
    duration,
    exit_codes,
    fail,
    header,
)
from router.sdk.codec import Result
from router.sdk.errors import DeadlineExceeded, JobCancelled, JobFailed, ResultPending
from router.sdk.jobs import Job
from router.units import budget_ms


@click.command(epilog=EXIT_CODES)
@click.argument("model", shell_complete=completion.models)
@click.argument("value", default="-")
@click.option(
    "--budget", callback=budget, help="Latency budget, such as 50ms or 10min (default: the server's)."
)
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
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@connection
def infer(
    model: str,
    value: str,
    budget: str | None,
    variant: str | None,
    outputs: tuple[str, ...],
    header: bool | None,
    as_json: bool,
    url: str,
    key: str | None,
) -> None:
    """Ask MODEL for one answer.

    VALUE is JSON (one sample or rows of them; an object names several inputs), plain text for a model
    that takes text, @FILE with either, or - for standard input. A .npy array, in a file or piped in, is
    one sample or rows; @FILE.csv and @FILE.jsonl are rows, read as submit reads them.

    \b
    Examples:
      hybrid-router infer intents "my card was swallowed" --budget 50ms
      hybrid-router infer digits @image.npy --variant int8 --output label
      hybrid-router infer iris @flowers.csv
      echo '[[5.1, 3.5, 1.4, 0.2]]' | hybrid-router infer iris - --json
    """
    given = read.given(value)
    # Whoever sits at a terminal would rather know soon that nobody is there.
    retry_s = min(30.0, budget_ms(budget) / 1e3) if budget else 2.0
    with exit_codes(), connect(url, key, retry_for=retry_s) as client:
        inputs = read.inputs(given, client.model(model), header)
        result = client.infer(model, inputs, budget, variant=variant, outputs=outputs or None)
    if as_json:
        show.say_json(show.as_json(result))
    else:
        show.say(result)


@click.command(epilog=EXIT_CODES)
@click.argument("id")
@click.option(
    "--wait", callback=duration, help="How long to wait for the end, such as 20s (default: not at all)."
)
@click.option("--output", "outputs", multiple=True, metavar="NAME", help="Only this output (repeatable).")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on standard output, whatever the state."
)
@connection
def result(
    id: str, wait: str | None, outputs: tuple[str, ...], as_json: bool, url: str, key: str | None
) -> None:
    """Show what became of the request ID, which was handed in earlier.

    \b
    Example:
      hybrid-router result digits.8f2c91d04ab37e65 --wait 20s
    """
    with exit_codes(), connect(url, key, retry_for="2s") as client:
        job = client.job(id, outputs=outputs or None)
        state, outcome = _ended(job, wait)
        if as_json:
            show.say_json(show.as_json_of(id, state, outcome))
        if isinstance(outcome, ResultPending):
            why = f"request {id} is {state}; --wait waits for its end"
            fail(str(outcome) if outcome.status == 429 else why, PENDING)
        if isinstance(outcome, Exception):
            fail(str(outcome), code_of(outcome))
    if not as_json:
        show.say(outcome)


#: What a request can have ended with, and the state where the server does not name it.
_ENDS = {JobFailed: "failed", JobCancelled: "cancelled", DeadlineExceeded: "expired"}
_Outcome = Result | ResultPending | JobFailed | JobCancelled | DeadlineExceeded


def _ended(job: Job, wait: str | None) -> tuple[str, _Outcome]:
    """The request's state, and its result or the error that it ended with."""
    try:
        state = job.state() if wait is None else "done"
        if state in ("pending", "leased"):
            return state, ResultPending(f"request {job.id} is {state}", id=job.id)
        return "done", job.result(wait)
    except ResultPending as error:
        # A client that polls too often does not ask for the state either.
        return "pending" if error.status == 429 else job.state(), error
    except (JobFailed, JobCancelled, DeadlineExceeded) as error:
        return str(error.problem.get("state") or _ENDS[type(error)]), error
