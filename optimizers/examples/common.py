"""What the examples share: trained weights kept between runs, and their command line."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from optimizers.examples import configs
from optimizers.files.outputs import OutputPath
from optimizers.formats.errors import RecipeError
from optimizers.pipeline import provenance
from optimizers.pipeline.cli import DATA_HELP, optimize
from optimizers.task import Dataset


def digest_of(*parts: Dataset | str) -> str:
    """SHA-256 over data sets and texts: what a task's digest is made of."""
    total = hashlib.sha256()

    def add(raw: bytes) -> None:
        total.update(len(raw).to_bytes(8, "big"))  # or "ab", "c" would be as good as "a", "bc"
        total.update(raw)

    for part in parts:
        if isinstance(part, str):
            add(part.encode())
            continue
        arrays = {**part.inputs, **({} if part.targets is None else {"": part.targets})}
        for name, array in sorted(arrays.items()):
            add(f"{name} {array.dtype} {array.shape}".encode())
            for raw in _raw(array):
                add(raw)
    return total.hexdigest()


def _raw(array: Any) -> Iterator[bytes]:
    if array.dtype == object:
        yield from (x if isinstance(x, bytes) else str(x).encode() for x in array.ravel())
    else:
        yield np.ascontiguousarray(array).tobytes()


def trained(workdir: Path, digest: str, build: Callable[[], Any], train: Callable[[Any], Any]) -> Any:
    """A trained torch module in eval mode: kept in ``workdir``, or trained now.

    It is kept under ``digest`` and what training depends on (:mod:`optimizers.pipeline.provenance`).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    path = workdir / f"trained-{digest_of(digest, provenance.digest())[:32]}.safetensors"
    module = build()
    try:
        module.load_state_dict(load_file(path))
        return module.eval()
    except (OSError, SafetensorError, RuntimeError):
        pass  # none there, or not whole: train
    module = train(module).eval()
    workdir.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, temporary)
    os.replace(temporary, path)
    return module


def recipe_path(name: str) -> Path:
    """The recipe file of an example. Raises :class:`RecipeError` where there is none of that name."""
    recipes = {path.stem: path for path in (configs() / "recipes").glob("*.yaml")}
    if name not in recipes:
        raise RecipeError(f"no recipe {name!r} among the examples; there are {', '.join(sorted(recipes))}")
    return recipes[name]


def command_line(name: str) -> None:
    """Run an example's recipe, by default into ``artifacts/<name>``."""

    @click.command(name)
    @click.option("--out", type=OutputPath(folder=True), default=Path("artifacts") / name)
    @click.option("--only", multiple=True, metavar="VARIANT", help="Make just this variant (repeatable).")
    @click.option("--data", type=click.Path(file_okay=False, path_type=Path), help=DATA_HELP)
    @click.pass_context
    def command(context: click.Context, out: Path, only: tuple[str, ...], data: Path | None) -> None:
        try:
            recipe = recipe_path(name)
        except RecipeError as error:
            raise click.ClickException(str(error)) from error
        context.invoke(optimize, recipe=recipe, out=out, only=only, data=data, quiet=False, strict=False)

    command()
