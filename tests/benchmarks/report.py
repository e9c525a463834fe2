"""What every benchmark writes: ``build/bench/<name>.json``, and the same as a table on the screen.

::

    {"machine": {...}, "figures": [{"figure": "...", "value": 5.9, "unit": "times", "bar": ">= 5",
                                    "holds": true, "detail": ...}]}
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from optimizers.runtimes import machine

FOLDER = Path("build/bench")


@dataclass(frozen=True)
class Figure:
    """One measured number, the bar it is held to (in words, empty where it is only reported), and more.

    ``detail`` is any JSON value: what the number was made from.
    """

    figure: str
    value: float
    unit: str = ""
    bar: str = ""
    holds: bool | None = None
    detail: Any = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def at_least(figure: str, value: float, unit: str, bar: float, detail: Any = None) -> Figure:
    """A figure that must reach ``bar``; a value that is not a number does not."""
    return Figure(figure, value, unit, f">= {bar:g}", bool(value >= bar), detail)


def at_most(figure: str, value: float, unit: str, bar: float, detail: Any = None) -> Figure:
    """A figure that must not pass ``bar``; a value that is not a number does."""
    return Figure(figure, value, unit, f"<= {bar:g}", bool(value <= bar), detail)


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
    table.add_column("bar")
    table.add_column("holds")
    table.add_column("detail", overflow="fold")
    for row in rows:
        holds = "" if row.holds is None else ("yes" if row.holds else "NO")
        # Long detail is for the file; what reads in a glance is for the screen.
        detail = row.detail if isinstance(row.detail, str) else ""
        table.add_row(row.figure, f"{_number(row.value)} {row.unit}".strip(), row.bar, holds, detail)
    Console().print(table)


def _number(value: float) -> str:
    """Four significant digits, in full where it is large."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
