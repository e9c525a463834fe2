"""A Pareto chart as SVG text: quality against a cost on a logarithmic axis. No drawing library needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

#: From a value to its place on the page.
Place = Callable[[float], float]

WIDTH, HEIGHT = 560, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 34, 48
_LINE_PX = 13


def scatter(
    points: Mapping[str, tuple[float, float]],
    on_front: Sequence[str],
    *,
    title: str,
    cost: str,
    quality: str,
) -> str:
    """``name -> (quality, cost above 0)`` as points with names; those on the front are joined."""
    costs = [c for _, c in points.values()]
    values = [q for q, _ in points.values()]
    low, high = math.log10(min(costs)) - 0.08, math.log10(max(costs)) + 0.28
    room = max((max(values) - min(values)) * 0.15, 0.002)
    floor, top = min(values) - room, max(values) + room

    def x(value: float) -> float:
        return _LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (value - floor) / (top - floor) * (HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" class="chart">',
        f'<text x="{_LEFT}" y="20" class="title">{escape(title)}</text>',
        *_axes(x, y, low, high, floor, top),
        f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 10}" class="axis" text-anchor="end">{escape(cost)}</text>',
        f'<text x="14" y="{_TOP - 4}" class="axis">{escape(quality)}</text>',
    ]
    line = " ".join(f"{x(points[n][1]):.1f},{y(points[n][0]):.1f}" for n in on_front)
    parts.append(f'<polyline points="{line}" class="front"/>')
    for name, (q, c) in points.items():
        kind = "on" if name in on_front else "off"
        parts.append(f'<circle cx="{x(c):.1f}" cy="{y(q):.1f}" r="5" class="{kind}"/>')
    places = {name: (x(c) + 8, y(q) - 6) for name, (q, c) in points.items()}
    for name, (left, base) in _apart(places).items():
        parts.append(f'<text x="{left:.1f}" y="{base:.1f}" class="name">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"])


def _axes(x: Place, y: Place, low: float, high: float, floor: float, top: float) -> list[str]:
    parts = []
    for tick in _log_ticks(low, high):
        at = x(tick)
        parts.append(f'<line x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{HEIGHT - _BOTTOM}" class="grid"/>')
        parts.append(
            f'<text x="{at:.1f}" y="{HEIGHT - _BOTTOM + 16}" class="tick" text-anchor="middle">'
            f"{tick:g}</text>"
        )
    for i in range(5):
        value = floor + (top - floor) * (i + 0.5) / 5
        at = y(value)
        parts.append(f'<line x1="{_LEFT}" y1="{at:.1f}" x2="{WIDTH - _RIGHT}" y2="{at:.1f}" class="grid"/>')
        parts.append(
            f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" class="tick" text-anchor="end">{value:.3f}</text>'
        )
    return parts


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within the range; only powers of ten where those are many."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    steps = (1,) if high - low > 3 else (1, 2, 5)
    ticks = [s * 10.0**p for p in powers for s in steps]
    return [t for t in ticks if low <= math.log10(t) <= high]


def _apart(places: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Labels moved down until none covers another: names are about 7 px a letter."""
    placed: dict[str, tuple[float, float]] = {}
    for name, (left, base) in sorted(places.items(), key=lambda p: (p[1][1], p[1][0])):
        moved = True
        while moved:
            moved = False
            for other, (x, y) in placed.items():
                overlaps = left < x + 7 * len(other) and x < left + 7 * len(name)
                if overlaps and abs(base - y) < _LINE_PX:
                    base = y + _LINE_PX
                    moved = True
        placed[name] = (left, base)
    return placed
