"""A Pareto chart as SVG: quality against a cost on a logarithmic axis, in the colours of its page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape

#: Colours to draw with -> variables of the page, so that the chart is readable on a dark page as well.
_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--soft)",
    "#030303": "var(--line)",
    "#040404": "var(--mark)",
}
_INK, _SOFT, _LINE, _MARK = _COLOURS
_LABEL_POINTS = 8


def scatter(
    points: Mapping[str, tuple[float, float]],
    on_front: Sequence[str],
    *,
    title: str,
    cost: str,
    quality: str,
) -> str:
    """``name -> (quality, cost above 0)`` as points with names; those on the front are joined."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "text.parse_math": False}):
        figure = Figure(figsize=(5.8, 3.6), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(title, fontsize=10, color=_INK, loc="left")
        axes.set_xlabel(cost, fontsize=8, color=_SOFT, loc="right")
        axes.set_ylabel(quality, fontsize=8, color=_SOFT, loc="top")
        axes.grid(color=_LINE)
        axes.tick_params(which="both", labelsize=8, color=_LINE, labelcolor=_SOFT)
        axes.spines[:].set_color(_LINE)
        axes.margins(0.18, 0.12)
        axes.plot([points[n][1] for n in on_front], [points[n][0] for n in on_front], color=_MARK)
        for name, (value, price) in points.items():
            axes.plot(price, value, "o", color=_MARK if name in on_front else _SOFT)
        figure.draw_without_rendering()  # settles where the points are, which the names must not cover
        places: dict[str, tuple[float, float]] = {}
        for name, (value, price) in points.items():
            x, y = axes.transData.transform((price, value))
            places[name] = float(x), float(y)
        for name, down in _label_offsets(places, 1.25 * _LABEL_POINTS * figure.dpi / 72).items():
            value, price = points[name]
            axes.annotate(
                name,
                (price, value),
                (6, 4 - down * 72 / figure.dpi),
                textcoords="offset points",
                fontsize=_LABEL_POINTS,
                color=_INK,
            )
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    svg = drawn.getvalue()
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    return f'<div class="chart" role="img" aria-label="{escape(title)}">{svg[svg.index("<svg") :]}</div>'


def _label_offsets(places: Mapping[str, tuple[float, float]], height: float) -> dict[str, float]:
    """How far each name moves down, in pixels, so that none covers another: a letter is about 0.6 high."""
    placed: list[tuple[str, float, float]] = []
    offsets = {}
    for name, (left, base) in sorted(places.items(), key=lambda item: (-item[1][1], item[1][0])):
        at = base
        for other, x, y in placed:  # from the top down: a name that moved may meet only those below
            if (
                left < x + 0.6 * height * len(other)
                and x < left + 0.6 * height * len(name)
                and at > y - height
            ):
                at = y - height
        placed.append((name, left, at))
        placed.sort(key=lambda item: -item[2])
        offsets[name] = base - at
    return offsets
