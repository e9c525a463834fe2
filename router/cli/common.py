"""What the client's commands share: where the server is, exit codes, and how errors end a command."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import click

from router import units
from router.bulk.errors import BulkError, InputError, LedgerError
from router.sdk.client import Client
from router.sdk.errors import (
    DeadlineExceeded,
    HybridRouterError,
    InvalidRequest,
    JobUnknown,
    ModelNotFound,
    Rejected,
    ResultPending,
    ServerUnavailable,
    Unauthorized,
)

F = TypeVar("F", bound=Callable[..., Any])

FAILED, USAGE, ROWS_FAILED, UNREACHABLE, LATE, REFUSED, PENDING, NO_ACCESS = range(1, 9)
INTERRUPTED = 130

#: The server, where neither an option nor the environment names one.
URL = "http://127.0.0.1:8000"

#: For the foot of each --help.
EXIT_CODES = """\b
Exit codes:
    0  all well
    1  failed, or cancelled
    2  the command, the file or the request must be mended
    3  done, but some rows failed (submit)
    4  the server cannot be reached or is not ready
    5  the latency budget is over
    6  not admitted: over quota, or it would be late
    7  not ended yet (result)
    8  no API key, or one that may not do this
  130  interrupted
"""


def connection(command: F) -> F:
    """The options that say which server, and as whom."""
    for option in (
        click.option(
            "--key",
            envvar="HYBRID_ROUTER_KEY",
            show_envvar=True,
            help="API key; better in the environment than on a command line that others can list.",
        ),
        click.option(
            "--url",
            envvar="HYBRID_ROUTER_URL",
            default=URL,
            show_default=True,
            show_envvar=True,
            help="The server.",
        ),
    ):
        command = option(command)
    return command


def header(command: F) -> F:
    """The option that says whether a CSV file begins with the names of its columns, as true or false."""

    def chosen(ctx: click.Context, parameter: click.Parameter, value: str | None) -> bool | None:
        return None if value is None else value == "yes"

    return click.option(
        "--header",
        type=click.Choice(["yes", "no"]),
        callback=chosen,
        help="Whether the first line of a .csv names its columns (default: as it looks).",
    )(command)


def budget(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A latency budget, checked before anything else is done."""
    return _checked(units.budget_ms, value, ctx, parameter)


def duration(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Any duration, zero too."""
    return _checked(units.duration_ms, value, ctx, parameter)


def _checked(
    parse: Callable[[str], float], value: str | None, ctx: click.Context, parameter: click.Parameter
) -> str | None:
    if value is not None:
        try:
            parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, parameter) from None
    return value


def connect(url: str, key: str | None, **settings: Any) -> Client:
    """A client; a command line that names no server is a usage error."""
    with usage_errors():
        return Client(url, key=key, **settings)


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """What the SDK refuses to be made with was typed wrong."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from None


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """End the command with one plain sentence and the code for what went wrong."""
    try:
        yield
    except (HybridRouterError, BulkError) as error:
        fail(str(error), code_of(error))
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{error.strerror or error}", FAILED)


def fail(message: str, code: int) -> NoReturn:
    click.secho(f"hybrid-router: {message}", err=True, fg="red")
    raise SystemExit(code)


_CODES: dict[type[Exception], int] = {
    InputError: USAGE,
    LedgerError: USAGE,
    InvalidRequest: USAGE,
    ModelNotFound: USAGE,
    JobUnknown: USAGE,
    Unauthorized: NO_ACCESS,
    ServerUnavailable: UNREACHABLE,
    DeadlineExceeded: LATE,
    Rejected: REFUSED,
    ResultPending: PENDING,
}


def code_of(error: Exception) -> int:
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), FAILED)
