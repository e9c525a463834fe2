"""How ``map`` shows how far it is: a bar on standard error, or the caller's own function."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from router.sdk.map import Progress


@contextmanager
def reporter(progress: bool | Progress, title: str) -> Iterator[Progress]:
    """A function to tell of each item answered; the bar goes when the block ends."""
    if callable(progress):
        yield progress
        return
    if not progress:
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)

        def show(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield show


def _silent(done: int, total: int | None) -> None:
    pass
