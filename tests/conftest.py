"""What tests of every kind share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def artifacts() -> Path:
    """The demo's three variants of the digits.

    They are kept between runs, because training takes a while; other sources, libraries or processors
    make them anew.
    """
    from optimizers.examples import digits

    folder = Path("build/test/digits").absolute()
    digits.build(folder)
    return folder
