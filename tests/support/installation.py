"""What an installation is made from, apart from the checkout: builds leave their files beside the sources."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("router", "workers", "optimizers")
_SOURCES = (*PACKAGES, "configs", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md")


def copy_sources(folder: Path) -> Path:
    """Copy all that a build needs to ``folder``, which is made."""
    folder.mkdir()
    for name in _SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    return folder
