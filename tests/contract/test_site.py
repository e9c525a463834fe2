"""``make docs``: the documents build as a site without a warning, and its pages ask no other host."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import DOCUMENTS, ROOT

pytest.importorskip("material", reason="needs the docs extra: pip install 'hybrid-router[docs]'")

#: What a browser fetches by itself, unlike a link that somebody follows.
_FETCHED = re.compile(
    r"<(?:script|img|link|iframe|source)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>"
    r"|url\([\"']?(?:https?:)?//[^)]*\)"
)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_no_other_host(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    pages = {path.relative_to(tmp_path).with_suffix(".md").as_posix() for path in tmp_path.rglob("*.html")}
    names = {path.relative_to(ROOT).as_posix() for path in DOCUMENTS}
    assert {name.replace("README.md", "index.md") for name in names} <= pages
    for path in [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")]:
        assert not _FETCHED.findall(path.read_text(encoding="utf-8")), path
