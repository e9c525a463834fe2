"""Finished passes, kept by the digest of all that they depend on, so that a run can resume.

A key covers the task's digest and code, the seed, every spec so far, this package's sources, the
libraries' versions and the processor (:mod:`optimizers.pipeline.provenance`). Entries are folders written
under a temporary name and renamed: an interrupted run leaves either a whole entry or none. Models are stored
without pickle (:mod:`optimizers.formats.serialization`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from optimizers.artifact import digest
from optimizers.formats.forms import FORMS
from optimizers.formats.packed import Packed
from optimizers.passes.technique import PassSpec
from optimizers.pipeline import provenance
from optimizers.task import Task, TaskModel
from optimizers.tensors import TensorSpec


def start_key(task: Task, seed: int, runtime: str = "", code: str = "") -> str:
    """The key of the original model, on its way to ``runtime``; ``code`` is the digest of the task's own."""
    parts = ["2", task.digest, code, provenance.digest(), seed, runtime]
    if task.preprocess:
        files = {name: digest(path) for name, path in task.preprocess.files.items()}
        parts += [dict(task.preprocess.settings), files]
    return _sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS))


def next_key(key: str, spec: PassSpec) -> str:
    """The key of the result of applying ``spec`` to the model of ``key``."""
    named = getattr(spec, "file", None)  # a file that the spec names counts by its content
    content = digest(Path(named)) if named and Path(named).is_file() else ""
    module = type(spec).__module__
    code = "" if module.startswith("optimizers.") else provenance.task_digest(module)  # another package's
    return _sha256(orjson.dumps([key, spec.to_json(), content, code]))


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


class PassCache:
    """A folder of finished passes. What other sources, libraries or processors made goes when it is opened.

    Their keys can never be asked for again here, and a model may be large.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made_by = provenance.digest()
        for meta in folder.glob("*/meta.json"):
            if self._made_elsewhere(meta):
                shutil.rmtree(meta.parent, ignore_errors=True)

    def _made_elsewhere(self, meta: Path) -> bool:
        try:
            return bool(orjson.loads(meta.read_bytes()).get("made_by") != self._made_by)
        except (OSError, ValueError, AttributeError):
            return True  # not whole: never used

    def get(self, key: str, task: Task) -> TaskModel | None:
        """The stored model, or None where there is none or it does not read back whole."""
        folder = self._folder / key
        try:
            meta = orjson.loads((folder / "meta.json").read_bytes())
            files = {name: (folder / name).read_bytes() for name in meta["files"]}
            if any(_sha256(raw) != meta["files"][name] for name, raw in files.items()):
                return None
            model = TaskModel(
                form=meta["form"],
                value=None,
                inputs=tuple(TensorSpec.from_json(s) for s in meta["inputs"]),
                outputs=tuple(TensorSpec.from_json(s) for s in meta["outputs"]),
                head=meta["head"],
                architecture=meta["architecture"],
                notes=meta["notes"],
                settings=meta["settings"],
            )
            packed = Packed(meta["runtime"], files, meta["packed_settings"])
            return replace(model, value=FORMS[model.form].unpack(packed, model, task))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            return None  # none there, not whole, or of an architecture that the task no longer builds

    def put(self, key: str, model: TaskModel, task: Task) -> None:
        """Store a model; one already there is left as it is."""
        target = self._folder / key
        packed = FORMS[model.form].pack(model, task)
        meta: dict[str, Any] = {
            "made_by": self._made_by,
            "form": model.form,
            "inputs": [s.to_json() for s in model.inputs],
            "outputs": [s.to_json() for s in model.outputs],
            "head": model.head,
            "architecture": model.architecture,
            "notes": dict(model.notes),
            "settings": dict(model.settings),
            "runtime": packed.runtime,
            "packed_settings": dict(packed.settings),
            "files": {name: _sha256(raw) for name, raw in packed.files.items()},
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=self._folder))
        try:
            for name, raw in packed.files.items():
                (temporary / name).write_bytes(raw)
            (temporary / "meta.json").write_bytes(orjson.dumps(meta, option=orjson.OPT_SERIALIZE_NUMPY))
            shutil.rmtree(target, ignore_errors=True)
            os.rename(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
