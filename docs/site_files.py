"""A hook of mkdocs: the site keeps the paths of the repository, so links between documents work in both."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\]\(([^)\s#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Put the documents, and every file of the repository that they link to, in the place of ``docs``."""
    for file in list(files):
        if file.abs_src_path and Path(file.abs_src_path).is_relative_to(config.docs_dir):
            files.remove(file)
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    linked = {
        (document.parent / link).resolve()
        for document in documents
        for link in _LINK.findall(document.read_text(encoding="utf-8"))
        if "://" not in link
    }
    for path in sorted({*documents, *filter(Path.is_file, linked), ROOT / "docs" / "site.css"}):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files
