"""``hybrid-router infer`` and ``hybrid-router result``: one request, and one that was sent before."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
import orjson

from router.client_codec import ModelInfo
from router.commands import show
from router.commands.common import (
    EXIT_CODES,
    PENDING,
    budget,
    connect,
    connection,
    duration,
    exit_codes,
    fail,
)
from router.units import budget_ms


@click.command(epilog=EXIT_CODES)
@click.argument("model")
@click.argument("value", default="-")
@click.option(
    "--budget", callback=budget, help="Latency budget, such as 50ms or 10min (default: the server's)."
)
@click.option("--variant", help="Run on this variant and no other.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@connection
def infer(
    model: str, value: str, budget: str | None, variant: str | None, as_json: bool, url: str, key: str | None
) -> None:
    """Ask MODEL for one answer.

    VALUE is JSON (one sample or rows of them; an object names several inputs), plain text for a model
    that takes text, @FILE with either or with a .npy array, or - for standard input.

    \b
    Examples:
      hybrid-router infer intents "my card was swallowed" --budget 50ms
      hybrid-router infer digits @image.npy --variant int8
      echo '[[5.1, 3.5, 1.4, 0.2]]' | hybrid-router infer iris - --json
    """
    given = _read(value)
    # Whoever sits at a terminal would rather know soon that nobody is there.
    retry_s = min(30.0, budget_ms(budget) / 1e3) if budget else 2.0
    with exit_codes(), connect(url, key, retry_for=retry_s) as client:
        inputs = _inputs(given, client.model(model)) if isinstance(given, str) else given
        result = client.infer(model, inputs, budget, variant=variant)
    if as_json:
        show.say_json(show.as_json(result))
    else:
        show.say(result)


def _read(value: str) -> object:
    """What VALUE stands for: an array, or the text to look into."""
    if value == "-":
        if sys.stdin.isatty():
            raise click.UsageError("give a VALUE, @FILE, or pipe one in")
        return sys.stdin.read()
    if not value.startswith("@"):
        return value
    path = Path(value[1:])
    try:
        if path.suffix == ".npy":
            array: object = np.load(path, allow_pickle=False)
            return array
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError, EOFError) as error:
        raise click.UsageError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None


def _inputs(text: str, model: ModelInfo) -> object:
    """JSON where it is JSON that the model may take; else, for a model that takes text, the text itself."""
    takes_text = len(model.inputs) == 1 and model.inputs[0].datatype == "BYTES"
    try:
        value: object = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if takes_text:
            return text.rstrip("\r\n")
        raise click.UsageError(
            f"the value is not JSON ({error}) and model {model.name!r} takes no text"
        ) from None
    if takes_text and not isinstance(value, str | list | dict):
        return text.rstrip("\r\n")
    return value


@click.command(epilog=EXIT_CODES)
@click.argument("id")
@click.option(
    "--wait", callback=duration, help="How long to wait for the end, such as 20s (default: not at all)."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@connection
def result(id: str, wait: str | None, as_json: bool, url: str, key: str | None) -> None:
    """Show what became of the request ID, which was handed in earlier.

    \b
    Example:
      hybrid-router result digits.8f2c91d04ab37e65 --wait 20s
    """
    with exit_codes(), connect(url, key, retry_for="2s") as client:
        job = client.job(id)
        state = job.state() if wait is None else ""
        if state in ("pending", "leased"):
            if as_json:
                show.say_json({"id": id, "state": state})
            fail(f"request {id} is {state}; --wait waits for its end", PENDING)
        answer = job.result(wait)
    if as_json:
        show.say_json({"state": "done", **show.as_json(answer)})
    else:
        show.say(answer)
