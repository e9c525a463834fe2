"""The options that say what arrives, shared by ``simulate`` and ``bench``: equal ones give equal requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import orjson

from optimizers.files.outputs import OutputPath, writing

Command = TypeVar("Command", bound=Callable[..., Any])

_ABOVE_ZERO = click.FloatRange(min=0.001)
_OPTIONS = (
    click.option("--trace", "trace_file", type=click.Path(path_type=Path), help="Arrivals: CSV or JSONL."),
    click.option("--rate", type=_ABOVE_ZERO, help="Mean requests/s (default: the trace's, or 50)."),
    click.option("--scale", type=_ABOVE_ZERO, default=1.0, show_default=True, help="Times the rate."),
    click.option(
        "--seconds", type=click.FloatRange(min=0.1), help="So much of the trace (default: all, or 60)."
    ),
    click.option(
        "--mix",
        metavar="PART,...",
        help="What requests are, each part MODEL:BUDGET[:WEIGHT[:ROWS]], then any of tenant=NAME, "
        "header.NAME=VALUE, parameter.NAME=VALUE and variant=NAME, with ':' between them.",
    ),
    click.option(
        "--ignore-columns",
        "ignored",
        default="",
        metavar="NAME,...",
        help="Columns of the trace that say nothing about requests.",
    ),
    click.option("--seed", default=7, show_default=True),
    click.option(
        "--json",
        "json_file",
        type=OutputPath(allow_dash=True),
        help="Write the numbers (- for standard output).",
    ),
    click.option("--picture", type=OutputPath(), help="Write a PNG (needs matplotlib)."),
)


#: How ``--help`` describes a trace and a mix.
COLUMNS = """\b
Columns of a trace; what they leave open is drawn from --mix:
  timestamp       seconds, or an ISO 8601 date
  model           which model
  budget          a duration such as 50ms (a number is seconds); or budget_ms
  rows            1 or more
  tenant          who asks
  variant         one that the caller pins
  header.NAME     a header, such as header.X-Tier
  parameter.NAME  a parameter of the request, such as parameter.explain
"""


def names(text: str) -> tuple[str, ...]:
    """What an option with commas between its parts lists."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def write_json(numbers: Mapping[str, Any], json_file: Path | None) -> bool:
    """Do what ``--json`` asks for; True where standard output is still free for the table."""
    if json_file is None:
        return True
    text = orjson.dumps(numbers, option=orjson.OPT_INDENT_2).decode()
    if str(json_file) == "-":
        click.echo(text)
        return False
    with writing("--json", json_file):
        json_file.write_text(text + "\n", encoding="utf-8")
    return True


def arrivals(command: Command) -> Command:
    """Give a command the parameters trace_file, rate, scale, seconds, mix, ignored, seed, json_file and
    picture."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
