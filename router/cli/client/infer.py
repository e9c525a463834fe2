"""``hybrid-router infer``: one request, and its answer."""

from __future__ import annotations

import click

from router.cli.client import completion, read, show
from router.cli.common import (
    EXIT_CODES,
    budget,
    connect,
    connection,
    exit_codes,
    header,
)
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
