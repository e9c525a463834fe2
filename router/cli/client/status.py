"""``hybrid-router status``: is the server there, what does it serve, and what waits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from router.cli.client import show
from router.cli.common import EXIT_CODES, UNREACHABLE, connect, connection, exit_codes
from router.sdk.client import Client
from router.sdk.codec import ModelInfo
from router.units import format_ms


@click.command(epilog=EXIT_CODES)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@connection
def status(as_json: bool, url: str, key: str | None) -> None:
    """Show whether the server is ready, its models and their variants, and what waits for them.

    \b
    Example:
      hybrid-router status --url http://127.0.0.1:8000
    """
    with exit_codes(), connect(url, key, retry_for="1s") as client:
        models = client.models()
        state = {
            "url": url,
            "ready": client.ready(),
            "models": [_about(client, model) for model in models],
        }
    if as_json:
        show.say_json(state)
    else:
        _say(state)
    if not state["ready"]:
        raise SystemExit(UNREACHABLE)


def _about(client: Client, model: ModelInfo) -> dict[str, Any]:
    return {
        "name": model.name,
        "variants": list(model.versions),
        "inputs": [spec.to_json() for spec in model.inputs],
        "outputs": [spec.to_json() for spec in model.outputs],
        "stats": client.stats(model.name),
    }


def _say(state: Mapping[str, Any]) -> None:
    ready = click.style("ready", fg="green") if state["ready"] else click.style("not ready", fg="red")
    click.echo(f"{state['url']}  {ready}")
    for model in state["models"]:
        takes, gives = _specs(model["inputs"]), _specs(model["outputs"])
        click.echo(f"\n{click.style(model['name'], bold=True)}  {takes} -> {gives}")
        click.echo(f"  variants  {', '.join(model['variants'])}")
        stats = model["stats"]
        if "online" in stats:
            click.echo(f"  online    {_online(stats['online'])}")
        if "queue" in stats:
            click.echo(f"  queue     {_queue(stats['queue'])}")
        elif stats.get("queue_known") is False:
            click.echo(
                f"  queue     {click.style('unknown', fg='red')}: its server does not answer the router"
            )


def _specs(specs: list[dict[str, Any]]) -> str:
    return ", ".join(f"{s['name']} {s['datatype']} {s['shape']}" for s in specs)


def _online(online: Mapping[str, Any]) -> str:
    text = f"{format_ms(online['busy_ms'])} of work running, {format_ms(online['waiting_ms'])} waiting"
    predicted = ", ".join(f"{name} {format_ms(ms)}" for name, ms in online["predicted_ms"].items())
    return f"{text}; a row now takes {predicted}" if predicted else text


def _queue(queue: Mapping[str, Any]) -> str:
    text = (
        f"{queue['jobs']:,} requests ({queue['rows']:,} rows): {queue['waiting_jobs']:,} waiting, "
        f"{queue['delayed_jobs']:,} to be tried again, {queue['leased_jobs']:,} running"
    )
    if queue["rows_per_s"]:
        text += f"; {queue['rows_per_s']:,.0f} rows/s"
    if restarts := queue.get("server_restarts"):
        text += f"; its server was restarted {'once' if restarts == 1 else f'{restarts:,} times'}"
    totals = ", ".join(f"{count:,} {name}" for name, count in queue["totals"].items() if count)
    return text + (f"\n            so far {totals}" if totals else "")
