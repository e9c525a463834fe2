"""What the examples share: trained weights kept between runs, and their command line."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from optimizers.recipe import RecipeError
from optimizers.task import Dataset


def digest_of(*parts: Dataset | str) -> str:
    """SHA-256 over data sets and texts: what a task's digest is made of."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            total.update(part.encode())
            continue
        for name, array in sorted(part.inputs.items()):
            total.update(f"{name} {array.dtype} {array.shape}".encode())
            total.update(_raw(array))
        if part.targets is not None:
            total.update(_raw(part.targets))
    return total.hexdigest()


def _raw(array: Any) -> bytes:
    if array.dtype == object:
        return b"\0".join(x if isinstance(x, bytes) else str(x).encode() for x in array.ravel())
    return bytes(np.ascontiguousarray(array).tobytes())


def trained(workdir: Path, digest: str, build: Callable[[], Any], train: Callable[[Any], Any]) -> Any:
    """A trained torch module in eval mode: kept in ``workdir`` under ``digest``, or trained now."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    path = workdir / f"trained-{digest[:32]}.safetensors"
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
    """The recipe file of an example. Raises :class:`RecipeError` outside a checkout of the repository."""
    path = Path(__file__).resolve().parents[2] / "configs" / "recipes" / f"{name}.yaml"
    if not path.is_file():
        raise RecipeError(f"{path} is not there: examples run from a checkout of the repository")
    return path
