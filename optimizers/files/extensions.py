"""What other installed packages add, through entry points of their distributions."""

from __future__ import annotations

from importlib import metadata
from typing import Any


class ExtensionError(RuntimeError):
    """An entry point that cannot be loaded. The message says which, of which distribution, and why."""


def names(group: str) -> tuple[str, ...]:
    """The names of a group's entry points, sorted."""
    return tuple(sorted({entry.name for entry in metadata.entry_points(group=group)}))


def load(group: str, name: str) -> Any:
    """What an entry point names, or None where there is none. Raises :class:`ExtensionError`."""
    entry = next(iter(metadata.entry_points(group=group, name=name)), None)
    if entry is None:
        return None
    try:
        return entry.load()
    except Exception as error:  # importing a module runs it
        owner = entry.dist.name if entry.dist else "an unknown distribution"
        raise ExtensionError(
            f"{name!r} of {owner} cannot be loaded from {entry.value!r}: {type(error).__name__}: {error}"
        ) from error
