"""What every form of model becomes in the end: files for the runtime that will serve it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from optimizers.artifact import Setting


@dataclass(frozen=True)
class Packed:
    """A model as files: ``runtime`` to run it, ``files`` by name, ``settings`` for the manifest.

    ``settings["weights"]`` names the main file, whose size is the variant's size unless
    ``settings`` says otherwise through ``weights_data``, a second file that counts too.
    """

    runtime: str
    files: Mapping[str, bytes]
    settings: Mapping[str, Setting]
