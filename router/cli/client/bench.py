"""``hybrid-router bench``: yesterday's traffic against a live deployment, beside what was predicted."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import orjson

from optimizers.files.outputs import writing
from router.bench import bodies, compare
from router.bench.http_pool import ExchangeError, HttpPool
from router.bench.picture import PictureError, draw
from router.bench.run import Replayed, replay
from router.bulk.errors import InputError
from router.cli import arrival_options
from router.cli.common import EXIT_CODES, UNREACHABLE, connect, connection, exit_codes, fail
from router.sdk.codec import ModelInfo
from router.simulate import result, workload
from router.simulate.arrivals import TraceError
from router.simulate.columns import hint
from router.simulate.workload import Request, Share

_BUDGET_MS = 1_000.0
_ERRORS = (TraceError, workload.MixError, InputError, compare.PredictionError)


@click.command(epilog=f"{arrival_options.COLUMNS}\n{EXIT_CODES}")
@arrival_options.arrivals
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Rows to send: .npy, .jsonl, .csv or .parquet (default: made to fit the model).",
)
@click.option(
    "--predicted",
    "predicted_file",
    type=click.Path(path_type=Path),
    help="Compare with what `simulate --json` wrote to this file.",
)
@connection
def bench(
    trace_file: Path | None,
    rate: float | None,
    scale: float,
    seconds: float | None,
    mix: str | None,
    ignored: str,
    seed: int,
    data: Path | None,
    predicted_file: Path | None,
    json_file: Path | None,
    picture: Path | None,
    url: str,
    key: str | None,
) -> None:
    """Send arrivals to a live server at their times, and tell what became of them.

    The options mean what they mean to `simulate`: the same ones give the very same requests, though the
    time of day is the server's own. Without --mix they are spread over the server's models with a budget of
    1s. A tenant goes as header Tenant, which a server with keys believes only of the tenant whose key is
    given. The load is open loop: a request
    goes at its time whether or not earlier ones are answered, and its latency counts from that time.
    "in bound" is judged by this client's clock, the network and its own lateness included.

    \b
    Examples:
      hybrid-router bench --rate 200 --seconds 30 --mix digits:50ms:9,digits:10min:1:64
      hybrid-router simulate configs/digits.yaml --trace day.csv --json predicted.json
      hybrid-router bench --trace day.csv --predicted predicted.json
    """
    try:
        predicted = compare.read(predicted_file) if predicted_file else {}
        with exit_codes(), connect(url, key, retry_for="2s") as client:
            known = {info.name: info for info in client.models()}
        shares = workload.parse_mix(mix) if mix else tuple(Share(name, _BUDGET_MS) for name in known)
        requests = workload.asked(
            trace_file,
            shares,
            seed,
            rate=rate,
            scale=scale,
            seconds=seconds,
            ignored=arrival_options.names(ignored),
        )
        _check(requests, known)
        ready = bodies.prepare(requests, known, data, seed)
        replayed = asyncio.run(_replay(url, key, requests, ready, seed))
    except ExchangeError as error:
        fail(str(error), UNREACHABLE)
    except _ERRORS as error:
        raise click.ClickException(str(error)) from None
    _tell(url, replayed, predicted, json_file, picture)


def _check(requests: Sequence[Request], known: Mapping[str, ModelInfo]) -> None:
    if not requests:
        raise workload.MixError("there is nothing to send: no arrival falls within --seconds")
    for model, variant in dict.fromkeys((request.model, request.variant) for request in requests):
        if model not in known:
            raise workload.MixError(
                f"requests for model {model!r}, which the server does not have; {hint(model, known)}"
            )
        if variant is not None and variant not in known[model].versions:
            raise workload.MixError(
                f"requests for variant {variant!r} of model {model!r}; {hint(variant, known[model].versions)}"
            )


async def _replay(
    url: str, key: str | None, requests: Sequence[Request], ready: bodies.Bodies, seed: int
) -> Replayed:
    headers = {"User-Agent": "hybrid-router", **({"Authorization": f"Bearer {key}"} if key else {})}
    pool = HttpPool(url, headers)
    try:
        drops = await quality_drops(pool, {request.model for request in requests})
        span_s = requests[-1].at_ms / 1e3
        with click.progressbar(
            length=len(requests), label=f"{len(requests):,} requests in {span_s:,.0f} s", file=sys.stderr
        ) as bar:
            every = max(1, len(requests) // 100)

            def sent(count: int) -> None:
                if count % every == 0 or count == len(requests):
                    bar.update(count - bar.pos)

            return await replay(pool, requests, ready, seed=seed, drops=drops, progress=sent)
    finally:
        await pool.close()


async def quality_drops(pool: HttpPool, models: set[str]) -> dict[tuple[str, str], float]:
    """Quality drops by model and variant, as the server's metadata tells them. Raises `ExchangeError`."""
    drops = {}
    for model in sorted(models):
        reply = await pool.exchange("GET", f"{pool.prefix}/v2/models/{model}")
        try:
            about = orjson.loads(reply.body)["parameters"]
            for variant, facts in about.items():
                drops[model, variant] = float(facts["quality"].get("quality_drop", 0.0))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
            continue  # another server of the protocol: answers count, their quality is not known
    return drops


def _tell(
    url: str,
    replayed: Replayed,
    predicted: Mapping[str, Mapping[str, Any]],
    json_file: Path | None,
    picture: Path | None,
) -> None:
    measured = replayed.result.to_json()
    compared = {name: compare.differences(simulated, measured) for name, simulated in predicted.items()}
    numbers: dict[str, Any] = {
        url: {
            **measured,
            "sender_lateness_ms_p99": replayed.lateness_ms_p99,
            "sender_was_bottleneck": replayed.sender_was_bottleneck,
            "failures": replayed.failures,
        },
        **{f"compared with {name}": [d._asdict() for d in ds] for name, ds in compared.items()},
    }
    if arrival_options.write_json(numbers, json_file):
        click.echo(result.table({url: replayed.result}))
        for name, differences in compared.items():
            click.echo("\n" + compare.table(name, differences))
    _warn(replayed)
    if picture is not None:
        try:
            with writing("--picture", picture):
                draw(picture, replayed.result, replayed.records, predicted)
        except PictureError as error:
            raise click.ClickException(str(error)) from None
        click.echo(f"picture: {picture}", err=True)


def _warn(replayed: Replayed) -> None:
    click.echo(f"sent within {replayed.lateness_ms_p99:.2f} ms of its time (p99)", err=True)
    if replayed.sender_was_bottleneck:
        click.secho(
            "the sender was the bottleneck: latencies hold its own delay; lower --rate, or send from more "
            "than one machine",
            err=True,
            fg="yellow",
        )
    for why, count in sorted(replayed.failures.items(), key=lambda item: -item[1])[:5]:
        click.secho(f"failed, {count:,} times: {why}", err=True, fg="red")
