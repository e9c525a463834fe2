"""``hybrid-router result``: what became of a request that was sent before."""

from __future__ import annotations

import click

from router.cli.client import show
from router.cli.common import EXIT_CODES, PENDING, code_of, connect, connection, duration, exit_codes, fail
from router.sdk.codec import Result
from router.sdk.errors import DeadlineExceeded, JobCancelled, JobFailed, ResultPending
from router.sdk.jobs import Job


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
