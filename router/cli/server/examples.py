"""``hybrid-router examples``: the example policies and recipes, as files to read, serve and change."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from optimizers.examples import configs


@click.command()
@click.argument(
    "folder", type=click.Path(file_okay=False, path_type=Path), default=Path("configs"), required=False
)
def examples(folder: Path) -> None:
    """Write the example policies and recipes to FOLDER (default: configs).

    Files that are there already stay as they are.

    \b
    Example:
      hybrid-router examples
      hybrid-router optimize configs/recipes/digits.yaml --out artifacts/digits
      hybrid-router serve configs/digits.yaml
    """
    source = configs()
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        target = folder / path.relative_to(source)
        if target.exists():
            click.echo(f"{target} is there already")
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        except OSError as error:
            raise click.ClickException(f"{target} cannot be written: {error.strerror}") from None
        click.echo(str(target))
