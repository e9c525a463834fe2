"""Errors that know where in a file they belong. Pure: the code that checks values needs no YAML for it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

#: Where a value stands: keys and indexes from the top of the file, or from the value that is checked.
Place = tuple[str | int, ...]


class PlacedError(ValueError):
    """Values that do not fit together; ``problems`` has the place and the sentence of each problem.

    ``within`` names what the places are counted from, for who reads the error without a file.
    """

    def __init__(self, problems: Iterable[tuple[Place, str]], within: str = "") -> None:
        self.problems = tuple(problems)
        top = (within,) if within else ()
        sentences = [f"{path_of((*top, *place))}: {text}" if place else text for place, text in self.problems]
        super().__init__("; ".join(sentences))


def path_of(place: Iterable[str | int]) -> str:
    """A place as people read it.

    >>> path_of(("routes", 0, "name"))
    'routes.0.name'
    """
    return ".".join(map(str, place))


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that ``name`` was probably meant to be.

    >>> nearest("rotues", ["models", "routes"])
    'routes'
    """
    close = difflib.get_close_matches(name, known, n=1)
    return close[0] if close else None


def hint(name: str, known: Collection[str]) -> str:
    """What may stand instead of a name that is not known, for the end of a sentence."""
    close = nearest(name, known)
    if close:
        return f"did you mean {close!r}?"
    return f"known here: {', '.join(sorted(known))}" if known else "there is none yet"
