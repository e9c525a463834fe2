"""Which variants are worth a choice: those that no other beats in quality and in cost."""

from __future__ import annotations

from collections.abc import Mapping


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names on the Pareto front of ``name -> (quality, cost)``, cheapest first.

    A point is off the front if another is at least as good in both and better in one; of equal
    points the first by name stays.
    """
    best = float("-inf")
    found = []
    for name, (quality, _) in sorted(points.items(), key=lambda p: (p[1][1], -p[1][0], p[0])):
        if quality > best:
            found.append(name)
            best = quality
    return found
