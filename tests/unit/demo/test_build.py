"""The demo asks the pipeline whether its variants are up to date, and speaks only when something is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimizers.examples import digits
from router.cli.server import demo


class Lines:
    """A console that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(
    ("messages", "speaks"),
    [
        ([("", "preparing digits"), ("float32", "already made"), ("int8", "already made")], False),
        ([("", "preparing digits"), ("float32", "already made"), ("int8", "measuring")], True),
        ([("", "preparing digits"), ("", "training: epoch 1/14, loss 2.0")], True),
    ],
)
def test_variants_are_checked_although_they_are_there(
    messages: list[tuple[str, str]], speaks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in digits.DEMO_VARIANTS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("of another machine")
    asked: list[Path] = []

    def build(out: Path, *, variants: Any, progress: Any) -> dict[str, Any]:
        asked.append(out)
        for message in messages:
            progress(*message)
        return {}

    monkeypatch.setattr(digits, "build", build)
    console = Lines()
    demo._build(tmp_path, console)  # type: ignore[arg-type]
    assert asked == [tmp_path]
    assert [line.startswith("building variants") for line in console.said[:1]] == ([True] if speaks else [])
