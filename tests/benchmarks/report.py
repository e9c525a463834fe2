"""What every benchmark writes: ``build/bench/<name>.json``, and the same as a table on the screen.

::

    {"machine": {...}, "figures": [{"figure": "...", "value": 5.9, "unit": "times", "bar": 5.0,
                                    "holds": true, "detail": "..."}]}
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from optimizers import machine

FOLDER = Path("build/bench")


@dataclass(frozen=True)
class Figure:
    """One measured number. ``bar`` is what it must reach, or None where it is only reported.

    ``at_least`` tells the direction: False where the value must stay at or below the bar. ``holds``
    follows from these; a value that is not a number holds nothing.
    """

    figure: str
    value: float
    unit: str = ""
    bar: float | None = None
    at_least: bool = True
    detail: str = ""
    holds: bool | None = field(init=False)

    def __post_init__(self) -> None:
        if self.bar is None:
            holds = None
        elif math.isnan(self.value):
            holds = False
        else:
            holds = self.value >= self.bar if self.at_least else self.value <= self.bar
        object.__setattr__(self, "holds", holds)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def write(name: str, figures: Iterable[Figure], **more: Any) -> Path:
    """Write and print the figures of benchmark ``name``; ``more`` members go beside them. Gives the path."""
    rows = list(figures)
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    content = {
        "benchmark": name,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "figures": [row.to_json() for row in rows],
        **more,
    }
    path.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))
    show(name, rows)
    print(f"written to {path}")
    return path


def show(name: str, rows: Iterable[Figure]) -> None:
    """The figures as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", title=name, title_justify="left", box=None, pad_edge=False)
    table.add_column("value", justify="right")
    table.add_column("bar", justify="right")
    table.add_column("holds")
    table.add_column("detail", overflow="fold")
    for row in rows:
        bar = "" if row.bar is None else f"{'≥' if row.at_least else '≤'} {_number(row.bar)}"
        holds = "" if row.holds is None else ("yes" if row.holds else "NO")
        table.add_row(row.figure, f"{_number(row.value)} {row.unit}".strip(), bar, holds, row.detail)
    Console().print(table)


def _number(value: float) -> str:
    """Four significant digits, in full where it is large."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
