"""The rows of a CSV file (RFC 4180, UTF-8), of which a broken one costs no other.

A quote that is never closed would make one cell of the rest of the file. So a row may only run over several
lines where that gives a row that fits; else its first line is a row by itself, one that cannot be read. What
the rows are depends on nothing but the file: they have the same numbers whenever it is read.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from optimizers.files.text import TextError, check_beginning
from router.bulk.chunks import Unreadable
from router.bulk.errors import InputError

#: Of one row, over all its lines.
_MAX_CHARS = 1 << 24
_QUOTES = "a quote in it is not closed, or one within a cell is not doubled"

#: Whether cells of which some hold line breaks may be a row.
Fits = Callable[[list[str]], bool]


def records(
    path: Path, fits: Fits = lambda cells: True, position: list[int] | None = None
) -> Iterator[list[str] | Unreadable]:
    """The cells of each row, in order. Empty lines are no rows.

    ``position`` is kept at the byte that reading has come to. Raises InputError for a file that is no UTF-8.
    """
    with path.open("rb") as raw:
        try:
            check_beginning(raw.read(64))
        except TextError as error:
            raise InputError(f"{path}: {error}") from None
        raw.seek(0)
        # Bytes that are no UTF-8 become surrogates, which tell their row apart and no more.
        with io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape", newline="") as file:
            lines = _Lines(file)
            while line := lines.next():
                if not line.strip("\r\n"):
                    continue
                record = line.rstrip("\r\n").split(",") if '"' not in line else _quoted(line, lines, fits)
                if position is not None:
                    position[0] = raw.tell()
                yield record if isinstance(record, Unreadable) else _checked(record)


class _Lines:
    """Lines that can be put back."""

    def __init__(self, file: io.TextIOWrapper) -> None:
        self._file = file
        self._back: deque[str] = deque()

    def next(self) -> str:
        """The next line with its end; empty after the last."""
        return self._back.popleft() if self._back else self._file.readline()

    def put_back(self, lines: list[str]) -> None:
        self._back.extendleft(reversed(lines))


def _quoted(line: str, lines: _Lines, fits: Fits) -> list[str] | Unreadable:
    """The row that begins with ``line``, of as many lines as its quotes say; else why this line is none."""
    taken = [line]
    try:
        cells = _cells(taken, lines)
        if len(taken) > 1 and not fits(cells):
            raise _Broken(_QUOTES)
    except _Broken as error:
        lines.put_back(taken[1:])
        return Unreadable(f"the line is not CSV: {error}")
    return cells


class _Broken(Exception):
    """The quotes of a row are not what RFC 4180 says."""


def _cells(taken: list[str], lines: _Lines) -> list[str]:
    """The cells of the row that begins with the line in ``taken``, which gets the lines that it runs over.

    By hand, as Python's reader bounds a cell to 128 KiB for the whole process.
    """
    cells: list[str] = []
    line, at, size = taken[0], 0, 0
    while True:
        if line[at : at + 1] != '"':
            comma = line.find(",", at)
            if comma < 0:
                return [*cells, line[at:].rstrip("\r\n")]
            cells.append(line[at:comma])
            at = comma + 1
            continue
        parts, at = [], at + 1
        while True:
            quote = line.find('"', at)
            if quote < 0:
                parts.append(line[at:])
                size += len(line)
                line, at = lines.next() if size <= _MAX_CHARS else "", 0
                if not line:
                    raise _Broken(_QUOTES)
                taken.append(line)
            elif line[quote + 1 : quote + 2] == '"':
                parts.append(line[at : quote + 1])
                at = quote + 2
            else:
                parts.append(line[at:quote])
                at = quote + 1
                break
        cells.append("".join(parts))
        if line[at : at + 1] != ",":
            if line[at:].strip("\r\n"):
                raise _Broken(_QUOTES)
            return cells
        at += 1


def _checked(cells: list[str]) -> list[str] | Unreadable:
    for number, cell in enumerate(cells, 1):
        if not cell.isascii():
            try:
                cell.encode()
            except UnicodeEncodeError:
                start = cell.encode("utf-8", "surrogateescape")[:40]
                return Unreadable(f"cell {number} is not UTF-8 text: {start!r}")
    return cells
