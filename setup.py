"""Puts the example policies and recipes into the package; all else is in pyproject.toml."""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithExamples(build_py):
    """Copies ``configs``, which people read at the top of the repository, to where an installation looks."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "optimizers", "examples", "configs")
            copytree("configs", folder, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithExamples})
