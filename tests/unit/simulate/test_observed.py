"""What ``status --json`` wrote to a file, as people's editors and shells save it."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.simulate.observed import ObservedError, read

STATUS = '{"models": [{"name": "m", "stats": {"online": {"hop_ms": 9.0, "profiles": {}}}}]}'


def test_a_status_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.write_text(STATUS, encoding="utf-8-sig")
    assert read(path).hop_ms == 9.0


def test_a_status_in_utf_16_says_how_to_save_it(tmp_path: Path) -> None:
    """As ``> status.json`` does in Windows PowerShell."""
    path = tmp_path / "status.json"
    path.write_text(STATUS, encoding="utf-16")
    with pytest.raises(ObservedError, match="save it as UTF-8"):
        read(path)
