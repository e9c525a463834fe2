"""The server needs Linux: elsewhere it says so before it begins anything."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from router.cli.main import main


@pytest.mark.parametrize("command", [("serve", "policy.yaml"), ("demo",)], ids=" ".join)
def test_another_system_is_named_in_one_sentence(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    said = CliRunner().invoke(main, list(command))
    assert said.exit_code == 1
    assert said.output == "Error: the server runs on Linux, and this is darwin\n"
