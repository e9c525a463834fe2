"""``hybrid-router optimize RECIPE.yaml --out DIR``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from optimizers.files.outputs import OutputPath
from optimizers.formats.errors import RecipeError

DATA_HELP = "Folder of data files, for a task that takes one."


@click.command()
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--out", type=OutputPath(folder=True), required=True, help="Where to write.")
@click.option("--only", multiple=True, metavar="VARIANT", help="Make just this variant (repeatable).")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), help=DATA_HELP)
@click.option("--quiet", is_flag=True, help="Say nothing while it runs.")
@click.option("--strict", is_flag=True, help="Exit with 1 where a goal is not met.")
def optimize(
    recipe: Path, out: Path, only: tuple[str, ...], data: Path | None, quiet: bool, strict: bool
) -> None:
    """Make and measure the variants of a RECIPE, and report on them.

    Run it again after an interruption: finished passes and variants are not repeated. A recipe names
    Python code that it runs; use only recipes that you trust.
    """
    from optimizers.artifact import ArtifactError
    from optimizers.formats.errors import PassError
    from optimizers.pipeline import pipeline, recipe_file
    from optimizers.runner import RunnerError

    try:
        loaded = recipe_file.read(recipe)
        if data:
            loaded = replace(loaded, data=str(data))
        result = pipeline.run(loaded, out, only=only or None, progress=None if quiet else show)
    except (RecipeError, PassError, ArtifactError, RunnerError, OSError) as error:
        raise click.ClickException(str(error)) from error
    _summary(result, out)
    if strict and not result.met:
        raise SystemExit(1)


def show(variant: str, message: str) -> None:
    """One line of progress."""
    click.echo(f"  {click.style(variant, bold=True)}: {message}" if variant else f"  {message}", err=True)


def _summary(result: Any, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from optimizers.pipeline.goals import figures

    original = result.artifacts[result.recipe.original.name].manifest
    shown = [n for n in (1, 8, 32) if any(p.batch == n for p in original.profile.points)]
    table = Table(box=None, pad_edge=False)
    for title in ("variant", "runtime"):
        table.add_column(title, no_wrap=True)
    for title in (original.metric, "fidelity", "KiB", *(f"ms, batch {n}" for n in shown)):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("goals", overflow="fold")
    for name, artifact in result.artifacts.items():
        measured = figures(artifact.manifest, original)
        goals = result.goals.get(name, ())
        missed = [str(g.goal) for g in goals if not g.holds]
        table.add_row(
            name,
            artifact.manifest.runtime,
            f"{measured[original.metric]:.4f}",
            f"{measured['fidelity']:.4f}",
            f"{measured['size_bytes'] / 1024:,.0f}",
            *(f"{measured[f'latency_ms_{n}']:.3f}" for n in shown),
            f"missed: {', '.join(missed)}" if missed else ("met" if goals else ""),
        )
    console = Console()
    if console.width < 110:
        console.width = 110  # a row that is cut off says less than one that is wrapped by the terminal
    console.print(table)
    for name, reason in result.skipped.items():
        console.print(f"{name}: skipped, {reason}")
    console.print(f"report: {out / 'report.html'}")
