"""Whole examples on real data, each a recipe, a data set and a model.

Start with :mod:`optimizers.examples.digits`, the smallest.
"""

from __future__ import annotations

from pathlib import Path


def configs() -> Path:
    """The folder of the example policies, with the recipes in ``recipes``.

    An installation has it inside this package, a checkout of the repository at its top.
    """
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "configs"
