"""``hybrid-router dead``: the jobs that were given up on, for the operator to read, queue again or delete.

It talks to the queue's own server, not to the endpoint: it works while the router is down, and needs the
right to read the policy and, for the bundled server, its data folder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from optimizers.tensors import TensorError, unpack
from router import policy as policies
from router import units
from router.cli.client.show import say_json
from router.cli.common import EXIT_CODES, FAILED, UNREACHABLE, USAGE, budget, fail
from router.policy import PolicyError
from router.serving import state
from workers.queue.contract import DeadLetter, DeadlineQueue, QueueError
from workers.queue.embedded import url_file
from workers.queue.job import JobStatus
from workers.queue.redis.queue import RedisQueue
from workers.queue.settings import QueueSettings

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_PATIENCE_S = 2.0


@click.group(epilog=EXIT_CODES)
def dead() -> None:
    """Read, queue again or delete the jobs that were given up on.

    \b
    Examples:
      hybrid-router dead list configs/digits.yaml digits
      hybrid-router dead show configs/digits.yaml digits digits.3f2a
      hybrid-router dead retry configs/digits.yaml digits --all --budget 10min
    """


def _of_a_queue(command: F) -> F:
    """POLICY, MODEL, where the bundled server keeps its data, and --json."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="One JSON value on standard output."),
        click.option(
            "--data", type=click.Path(path_type=Path), help="Folder of the bundled queue server's data."
        ),
        click.argument("model"),
        click.argument("policy", type=click.Path(path_type=Path)),
    ):
        command = option(command)
    return command


_some_ids = click.argument("ids", nargs=-1)
_all_ids = click.option("--all", "every", is_flag=True, help="Every dead letter of the model.")


@dead.command(name="list", epilog=EXIT_CODES)
@_of_a_queue
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="At most so many.")
def list_(policy: Path, model: str, data: Path | None, as_json: bool, limit: int) -> None:
    """List MODEL's dead letters, newest first."""

    async def look(queue: DeadlineQueue) -> tuple[list[JobStatus], int]:
        return await queue.dead_letters(limit), (await queue.stats()).dead_letters

    letters, total = _ask(policy, model, data, look)
    if as_json:
        say_json([_plain(letter) for letter in letters])
        return
    for letter in letters:
        error = " ".join((letter.error or "").split())
        click.echo(f"{letter.id}  {_moment(letter.finished_ms)}  {_rows(letter.rows)}  {error}")
    if total > len(letters):
        click.secho(f"{len(letters)} of {total}; --limit shows more", dim=True)
    elif not total:
        click.echo(f"model {model!r} has no dead letters")


@dead.command(epilog=EXIT_CODES)
@_of_a_queue
@click.argument("ids", nargs=-1, required=True)
def show(policy: Path, model: str, data: Path | None, as_json: bool, ids: tuple[str, ...]) -> None:
    """Show dead letters in full: every failure, who ran it, and what the payload holds."""

    async def look(queue: DeadlineQueue) -> list[DeadLetter | None]:
        return [await queue.show_dead(id) for id in ids]

    found = [letter for letter in _ask(policy, model, data, look) if letter is not None]
    if as_json:
        say_json(
            [{**_plain(x.status), "payload": _contents(x), "max_attempts": x.max_attempts} for x in found]
        )
    else:
        click.echo("\n\n".join(_in_full(letter) for letter in found))
    _all_were_dead(ids, [letter.status.id for letter in found])


@dead.command(epilog=EXIT_CODES)
@_of_a_queue
@_some_ids
@_all_ids
@click.option("--budget", required=True, callback=budget, help="Their new latency budget, such as 10min.")
def retry(
    policy: Path, model: str, data: Path | None, as_json: bool, ids: tuple[str, ...], every: bool, budget: str
) -> None:
    """Queue dead letters again under their ids, with all their attempts and a new deadline."""
    _either(ids, every)
    budget_ms = max(1, int(units.budget_ms(budget)))

    async def move(queue: DeadlineQueue) -> tuple[Sequence[str], list[str]]:
        chosen = ids or await _every_id(queue)
        return chosen, await queue.retry_dead(chosen, budget_ms)

    _report("queued again", policy, model, data, as_json, move)


@dead.command(epilog=EXIT_CODES)
@_of_a_queue
@_some_ids
@_all_ids
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop(
    policy: Path, model: str, data: Path | None, as_json: bool, ids: tuple[str, ...], every: bool, yes: bool
) -> None:
    """Delete dead letters with their payloads, for ever."""
    _either(ids, every)
    if not yes:
        what = f"{len(ids)} dead letters" if ids else "all dead letters"
        click.confirm(f"delete {what} of model {model!r} for ever?", abort=True, err=True)

    async def move(queue: DeadlineQueue) -> tuple[Sequence[str], list[str]]:
        chosen = ids or await _every_id(queue)
        return chosen, await queue.drop_dead(chosen)

    _report("deleted", policy, model, data, as_json, move)


def _either(ids: Sequence[str], every: bool) -> None:
    if bool(ids) == every:
        raise click.UsageError("name the dead letters by id, or give --all")


async def _every_id(queue: DeadlineQueue) -> list[str]:
    count = (await queue.stats()).dead_letters
    return list(dict.fromkeys(letter.id for letter in await queue.dead_letters(count)))


def _report(
    done: str,
    policy: Path,
    model: str,
    data: Path | None,
    as_json: bool,
    move: Callable[[DeadlineQueue], Awaitable[tuple[Sequence[str], list[str]]]],
) -> None:
    chosen, moved = _ask(policy, model, data, move)
    if as_json:
        say_json(moved)
    else:
        click.echo(f"{len(moved)} {done}")
    _all_were_dead(chosen, moved)


def _all_were_dead(asked: Sequence[str], found: Sequence[str]) -> None:
    others = sorted(set(asked) - set(found))
    if others:
        fail(f"not a dead letter (any more): {', '.join(others)}", FAILED)


def _ask(policy: Path, model: str, data: Path | None, question: Callable[[DeadlineQueue], Awaitable[T]]) -> T:
    """The answer of the model's queue; every failure ends the command in one sentence."""
    try:
        read = policies.read(policy)
        if model not in read.queued_models:
            known = ", ".join(read.queued_models) or "none"
            fail(f"{policy}: no model {model!r} with a batch side; there is {known}", USAGE)
        url = read.redis.url or url_file(data or read.redis.data or state.find() / "queue")

        async def answer() -> T:
            settings = QueueSettings(**read.queue_settings)
            queue = RedisQueue.open(
                url, model, settings, namespace=read.redis.namespace, patience_s=_PATIENCE_S
            )
            try:
                return await question(queue)
            finally:
                await queue.close()

        return asyncio.run(answer())
    except (PolicyError, state.StateError) as error:
        fail(str(error), USAGE)
    except QueueError as error:
        fail(str(error), UNREACHABLE)


def _plain(status: JobStatus) -> dict[str, Any]:
    kept = (
        "id",
        "deadline_ms",
        "submitted_ms",
        "finished_ms",
        "rows",
        "tenant",
        "variant",
        "attempts",
        "lost",
    )
    return {
        **{name: getattr(status, name) for name in kept},
        "error": status.error,
        "failures": [asdict(failure) for failure in status.failures],
    }


def _contents(letter: DeadLetter) -> dict[str, Any]:
    """Name, type and shape of each tensor, or why the payload cannot be read."""
    size = {"bytes": len(letter.payload)}
    try:
        tensors, _ = unpack(letter.payload)
    except TensorError as error:
        return {**size, "error": str(error)}
    inputs = {name: {"dtype": str(x.dtype), "shape": list(x.shape)} for name, x in tensors.items()}
    return {**size, "inputs": inputs}


def _in_full(letter: DeadLetter) -> str:
    status, held = letter.status, _contents(letter)
    inputs = held.get("inputs", {})
    payload = ", ".join(f"{name} {x['dtype']} {x['shape']}" for name, x in inputs.items()) or held.get(
        "error"
    )
    lines = [
        click.style(status.id, bold=True),
        f"  error      {status.error}",
        f"  submitted  {_moment(status.submitted_ms)}, due {_moment(status.deadline_ms)}",
        f"  given up   {_moment(status.finished_ms)}, last run by {status.worker or 'nobody'}",
        f"  attempts   {status.attempts} of {letter.max_attempts}, {status.lost} leases lost",
        f"  asked for  {_rows(status.rows)}, variant {status.variant or 'any'}",
        f"  tenant     {status.tenant or 'none'}",
        f"  payload    {held['bytes']} bytes: {payload}",
    ]
    lines += [f"  {_moment(x.at_ms)}  {x.worker or 'nobody'}: {x.error}" for x in status.failures]
    return "\n".join(lines)


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"


def _moment(epoch_ms: int | None) -> str:
    if epoch_ms is None:
        return "never"
    return (
        datetime.fromtimestamp(epoch_ms / 1_000.0, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    )
