"""``hybrid-router policy check`` and ``policy explain``: read a policy before it runs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import orjson
import yaml

from router import policy as policies
from router import units
from router.policy import Policy, PolicyError
from router.policy import schema as policy_schema
from router.policy.artifacts import read_variants
from router.policy.reference import reference
from router.scheduling import explain as policy_explain
from router.scheduling import policy_check
from router.scheduling.admission import RouteFacts

_COLOURS = {"error": "red", "warning": "yellow", "note": None}
#: What is wrong with the policy file itself; a finding in a readable one is 1.
_UNREADABLE = 2


@click.group()
def policy() -> None:
    """Read a policy before it runs: what is wrong with it, and where a request would go."""


@policy.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--strict", is_flag=True, help="Warnings count as errors.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array on standard output.")
def check(file: Path, strict: bool, as_json: bool) -> None:
    """Find routes that can never match, gaps, and budgets that no variant can meet.

    Exit status: 0 nothing wrong, 1 something found, 2 the file cannot be used.

    \b
    Example:
      hybrid-router policy check configs/digits.yaml --strict
    """
    chosen = _read(file)
    found = policy_check.check(chosen, _variants(chosen, file))
    if as_json:
        click.echo(orjson.dumps([asdict(f) for f in found], option=orjson.OPT_INDENT_2).decode())
    else:
        for finding in found:
            level = click.style(finding.level, fg=_COLOURS[finding.level])
            where = finding.where if " " in finding.where else f"route {finding.where!r}"
            click.echo(f"{file}: {level}: {where}: {finding.text}")
        if not found:
            click.echo(f"{file}: nothing found")
    bad = ("error", "warning") if strict else ("error",)
    if any(finding.level in bad for finding in found):
        raise SystemExit(1)


@policy.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", help="Which one, where the policy has several.")
@click.option("--budget", help="The latency budget, such as 80ms (default: the policy's).")
@click.option("--rows", default=1, show_default=True, type=click.IntRange(1))
@click.option("--variant", help="One that the caller pins.")
@click.option("--tenant", default="", help="Who asks.")
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="One that comes with it.")
@click.option("--parameter", "parameters", multiple=True, metavar="NAME=VALUE", help="One of the request's.")
@click.option("--at", metavar="TIME", help="When, such as 2026-01-15T23:00 (UTC) or 23:00 (default: now).")
@click.option("--online-rows", default=0, type=click.IntRange(0), help="Rows that wait for a replica.")
@click.option("--queued-rows", default=0, type=click.IntRange(0), help="Rows that wait in the queue.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def explain(
    file: Path,
    model: str | None,
    budget: str | None,
    rows: int,
    variant: str | None,
    tenant: str,
    headers: tuple[str, ...],
    parameters: tuple[str, ...],
    at: str | None,
    online_rows: int,
    queued_rows: int,
    as_json: bool,
) -> None:
    """Say which route, path and variant a request would take, and why. Exit status 1 where it is refused.

    \b
    Example:
      hybrid-router policy explain configs/digits.yaml --budget 80ms --online-rows 500
      hybrid-router policy explain configs/explanations.yaml --parameter explain=true
    """
    chosen = _read(file)
    if model is None and len(chosen.models) == 1:
        model = next(iter(chosen.models))
    if model is None or model not in chosen.models:
        raise click.UsageError(f"--model: the policy has {', '.join(chosen.models)}")
    try:
        budget_ms = units.budget_ms(budget) if budget is not None else chosen.defaults.budget
    except ValueError as error:
        raise click.UsageError(f"--budget: {error}") from None
    variants = _variants(chosen, file)[model]
    if variant is not None and variant not in variants:
        raise click.UsageError(f"--variant: model {model!r} has {', '.join(variants)}")
    if tenant and tenant not in chosen.tenants:
        raise click.UsageError(f"--tenant: the policy has {', '.join(chosen.tenants) or 'none'}")
    ask = RouteFacts(
        model, rows, budget_ms, variant, tenant, _headers(headers), _parameters(parameters), _epoch_s(at)
    )
    told = policy_explain.explain(chosen, variants, ask, online_rows=online_rows, queued_rows=queued_rows)
    if as_json:
        click.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
    else:
        click.echo(policy_explain.sentence(told))
    if told["goes"] == "refused":
        raise SystemExit(1)


def _headers(given: Iterable[str]) -> dict[bytes, bytes]:
    """``X-Tier: gold`` as it would come: the name in lower case, latin-1."""
    found = {}
    for text in given:
        name, colon, value = text.partition(":")
        try:
            found[name.strip().lower().encode("ascii")] = value.strip().encode("latin-1")
        except UnicodeEncodeError:
            raise click.UsageError(f"--header: {text!r} has a character that no header can carry") from None
        if not colon or not name.strip():
            raise click.UsageError(f"--header: {text!r} is not a header; write 'X-Tier: gold'")
    return found


def _parameters(given: Iterable[str]) -> dict[str, Any]:
    """``explain=true`` with the value read as YAML reads one, so that 3 is a number and "3" a text."""
    found = {}
    for text in given:
        name, sign, written = text.partition("=")
        try:
            value = yaml.safe_load(written)
        except (yaml.YAMLError, ValueError):
            value = None
        if not sign or not name or not isinstance(value, bool | int | float | str):
            raise click.UsageError(
                f"--parameter: {text!r} is not a parameter; write explain=true or tier=gold"
            )
        found[name] = value
    return found


def _epoch_s(at: str | None) -> float:
    """The moment that ``at`` names; without a zone it is UTC, without a day today."""
    if at is None:
        return time.time()
    text = f"{datetime.now(UTC):%Y-%m-%d}T{at}" if "-" not in at[:5] else at
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(f"--at: {at!r} is not a time; write 2026-01-15T23:00 or 23:00") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@policy.command()
@click.option("--markdown", is_flag=True, help="A page that describes every key instead: docs/policy.md.")
def schema(markdown: bool) -> None:
    """Print the policy's JSON Schema, for editors.

    \b
    At the top of a policy file, for those that use the YAML language server:
      # yaml-language-server: $schema=policy.schema.json
    """
    if markdown:
        click.echo(reference(), nl=False)
    else:
        click.echo(orjson.dumps(policy_schema.schema(), option=orjson.OPT_INDENT_2).decode())


def _read(file: Path) -> Policy:
    try:
        return policies.read(file)
    except PolicyError as error:
        click.echo(str(error), err=True)
        raise SystemExit(_UNREADABLE) from None


def _variants(chosen: Policy, file: Path) -> policy_check.Variants:
    try:
        return read_variants(chosen, str(file))
    except PolicyError as error:
        click.echo(str(error), err=True)
        raise SystemExit(_UNREADABLE) from None
