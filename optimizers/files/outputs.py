"""Files that commands write: checked before the work begins, so that none is done for nothing."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click


class OutputPath(click.Path):
    """The type of an option that names a file to write, or with ``folder`` the folder to write into.

    The folders on the way need not exist. Raises click's ClickException.
    """

    def __init__(self, *, folder: bool = False, allow_dash: bool = False) -> None:
        super().__init__(
            file_okay=not folder, dir_okay=folder, path_type=Path, writable=True, allow_dash=allow_dash
        )

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if str(path) != "-" and (reason := why_not_writable(path)):
            raise _refusal(param.opts[0] if param else "", path, reason)
        return path


def why_not_writable(path: Path) -> str:
    """Why the file or folder cannot be written; empty where it can, as far as one can see beforehand."""
    existing = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if existing != path and not existing.is_dir():
        return os.strerror(errno.ENOTDIR)
    mode = os.W_OK | os.X_OK if existing.is_dir() else os.W_OK
    return "" if os.access(existing, mode) else os.strerror(errno.EACCES)


@contextlib.contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """Write within this block. What fails all the same, such as on a full disk, is click's ClickException."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise _refusal(option, path, error.strerror or str(error)) from None


def _refusal(option: str, path: Path, reason: str) -> click.ClickException:
    return click.ClickException(f"{option} {path}: cannot be written: {reason}")
