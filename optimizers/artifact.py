"""A variant on disk: one folder with ``manifest.json`` and the files it names, checked when read.

::

    artifacts/digits/             a model: one folder per variant
        float32/manifest.json     what it takes, gives, costs and is worth
        float32/model.onnx        weights, in a format that runs no code when loaded

The manifest names every file with its SHA-256; :func:`read` refuses what does not match. Nothing
here is unpickled, and nothing heavier than the standard library and numpy is imported.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from optimizers.profile import LatencyProfile
from optimizers.tensors import TensorSpec

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

Setting = str | int | float | bool


class ArtifactError(Exception):
    """A variant that cannot be read or written.

    ::

        ArtifactError
        |- ArtifactMissing      no such folder, manifest or file
        |- ArtifactNewer        written by a later release in a format this one does not know
        |- ArtifactMalformed    the manifest is not what the format says
        |- ArtifactTampered     a file is not the one the manifest was written for
    """


class ArtifactMissing(ArtifactError):
    """The folder, its manifest or a file that the manifest names does not exist."""


class ArtifactNewer(ArtifactError):
    """The manifest's format is newer than this release reads."""


class ArtifactMalformed(ArtifactError):
    """The manifest cannot be parsed or lacks something."""


class ArtifactTampered(ArtifactError):
    """A file's size or SHA-256 differs from the manifest's: truncated, damaged or exchanged."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the artifact: its SHA-256 in hexadecimal and its size."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a variant is, what it costs and what it is worth. All of it measured, none of it assumed.

    ``quality`` holds the primary metric under the name in ``metric`` (higher is better) and
    ``quality_drop``, the original's value minus this one's (negative: better than the original).
    ``fidelity`` is agreement with the original, 1 at best. ``size_bytes`` counts the weights file.
    ``tolerance`` is the largest absolute difference between a row's output alone and in a batch.
    ``runtime`` names the backend; ``settings`` are its own: ``weights`` (the file to load),
    ``threads``, ``device``, and whatever the backend documents.
    ``interpretability`` says what of the model a reader can follow (its ``kind``; rules and their
    number); ``notes`` keep what passes reported (sensitivity by layer, tries of a search)
    and an ``example``: a row to try the variant with.
    ``preprocess`` describes what turns the artifact's inputs into the network's, or is empty.
    """

    model: str
    variant: str
    runtime: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metric: str
    quality: Mapping[str, float]
    profile: LatencyProfile
    size_bytes: int
    parameters: int
    fidelity: float = 1.0
    sparsity: float = 0.0
    tolerance: float = 0.0
    recipe: tuple[Mapping[str, Any], ...] = ()
    lineage: Mapping[str, str] = field(default_factory=dict)
    interpretability: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)
    preprocess: Mapping[str, Setting] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def quality_drop(self) -> float:
        """How much of the primary metric this variant lost against the original."""
        return self.quality["quality_drop"]

    @property
    def threads(self) -> int:
        """Threads that the profile was measured with, and the default at load."""
        return int(self.settings.get("threads", 1))

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": self.format_version,
            "model": self.model,
            "variant": self.variant,
            "runtime": self.runtime,
            "inputs": [s.to_json() for s in self.inputs],
            "outputs": [s.to_json() for s in self.outputs],
            "metric": self.metric,
            "quality": dict(self.quality),
            "fidelity": self.fidelity,
            "profile": self.profile.to_json(),
            "size_bytes": self.size_bytes,
            "parameters": self.parameters,
            "sparsity": self.sparsity,
            "tolerance": self.tolerance,
            "recipe": [dict(step) for step in self.recipe],
            "lineage": dict(self.lineage),
            "interpretability": dict(self.interpretability),
            "notes": dict(self.notes),
            "machine": dict(self.machine),
            "settings": dict(self.settings),
            "preprocess": dict(self.preprocess),
            "files": {
                name: {"sha256": entry.sha256, "size_bytes": entry.size_bytes}
                for name, entry in self.files.items()
            },
        }

    @classmethod
    def from_json(cls, value: Any) -> Manifest:
        """Raises :class:`ArtifactNewer` or :class:`ArtifactMalformed`."""
        if not isinstance(value, dict):
            raise ArtifactMalformed(f"a manifest is a JSON object, not {type(value).__name__}")
        version = value.get("format_version")
        if not isinstance(version, int) or version < 1:
            raise ArtifactMalformed(f"format_version must be a whole number from 1, not {version!r}")
        if version > FORMAT_VERSION:
            raise ArtifactNewer(
                f"manifest format {version} is newer than {FORMAT_VERSION}, the newest this release "
                "reads: upgrade hybrid-router, or make the artifact again with this one"
            )
        try:
            return _manifest(value, version)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            what = f"member {error} is missing" if isinstance(error, KeyError) else str(error)
            raise ArtifactMalformed(f"not a manifest of format {version}: {what}") from None


def _manifest(value: dict[str, Any], version: int) -> Manifest:
    quality = {str(k): float(v) for k, v in value["quality"].items()}
    metric = str(value["metric"])
    for name in (metric, "quality_drop"):
        if name not in quality:
            raise ValueError(f"quality lacks {name!r}")
    files = {str(n): FileEntry(str(f["sha256"]), int(f["size_bytes"])) for n, f in value["files"].items()}
    for name in files:
        check_name(name)
    return Manifest(
        model=str(value["model"]),
        variant=str(value["variant"]),
        runtime=str(value["runtime"]),
        inputs=tuple(TensorSpec.from_json(s) for s in value["inputs"]),
        outputs=tuple(TensorSpec.from_json(s) for s in value["outputs"]),
        metric=metric,
        quality=quality,
        fidelity=float(value["fidelity"]),
        profile=LatencyProfile.from_json(value["profile"]),
        size_bytes=int(value["size_bytes"]),
        parameters=int(value["parameters"]),
        sparsity=float(value["sparsity"]),
        tolerance=float(value["tolerance"]),
        recipe=tuple(dict(step) for step in value["recipe"]),
        lineage={str(k): str(v) for k, v in value["lineage"].items()},
        interpretability=dict(value["interpretability"]),
        notes=dict(value["notes"]),
        machine=dict(value["machine"]),
        settings=dict(value["settings"]),
        preprocess=dict(value["preprocess"]),
        files=files,
        format_version=version,
    )


@dataclass(frozen=True, slots=True)
class Artifact:
    """A variant's folder and its manifest."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """The path of a file of this artifact. Raises :class:`ArtifactMalformed` for any other."""
        if name not in self.manifest.files:
            raise ArtifactMalformed(
                f"{self.path}: file {name!r} is not in the manifest, which has {sorted(self.manifest.files)}"
            )
        return self.path / name

    def weights(self) -> Path:
        """The file that ``settings["weights"]`` names."""
        name = self.manifest.settings.get("weights")
        if not isinstance(name, str):
            raise ArtifactMalformed(f'{self.path}: settings lack "weights", the name of the file to load')
        return self.file(name)


def check_name(name: str) -> str:
    """``name`` if it is a plain file or variant name; a path could lead out of the folder."""
    if not name or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise ValueError(f"{name!r} is not a plain name (no path, no leading dot)")
    return name


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read(path: str | os.PathLike[str], *, verify: bool = True) -> Artifact:
    """The artifact in folder ``path``, its files checked against the manifest.

    Raises :class:`ArtifactMissing`, :class:`ArtifactNewer`, :class:`ArtifactMalformed` or
    :class:`ArtifactTampered`. ``verify=False`` skips the digests (not the sizes), for callers
    that only want the description.
    """
    folder = Path(path)
    try:
        raw = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactMissing(
            f"{folder}: no {MANIFEST} here; make it with `hybrid-router optimize`"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ArtifactMissing(f"{str(folder / MANIFEST)!r}: cannot be read ({error})") from None
    try:
        manifest = Manifest.from_json(orjson.loads(raw))
    except orjson.JSONDecodeError as error:
        raise ArtifactMalformed(f"{folder / MANIFEST}: not JSON ({error})") from None
    except ArtifactError as error:
        raise type(error)(f"{folder / MANIFEST}: {error}") from None
    for name, entry in manifest.files.items():
        _check_file(folder / name, entry, verify)
    return Artifact(folder, manifest)


def _check_file(path: Path, entry: FileEntry, verify: bool) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise ArtifactMissing(f"{path}: the manifest names it, but it is not there; copy it again") from None
    except OSError as error:
        raise ArtifactMissing(f"{path}: cannot be read ({error})") from None
    if size != entry.size_bytes:
        raise ArtifactTampered(
            f"{path}: {size} bytes where the manifest says {entry.size_bytes}; copy it again"
        )
    try:
        same = not verify or digest(path) == entry.sha256
    except OSError as error:
        raise ArtifactMissing(f"{path}: cannot be read ({error})") from None
    if not same:
        raise ArtifactTampered(f"{path}: its SHA-256 is not the manifest's; copy it again or make it again")


def read_all(folder: str | os.PathLike[str], *, verify: bool = True) -> dict[str, Artifact]:
    """A model's variants by name, from a folder that holds one folder per variant.

    Raises :class:`ArtifactMissing` where there is none, and what :func:`read` raises for any one.
    """
    root = Path(folder)
    try:
        paths = sorted(p.parent for p in root.glob(f"*/{MANIFEST}") if not p.parent.name.startswith("."))
    except OSError as error:
        raise ArtifactMissing(f"{root}: cannot be listed ({error})") from None
    found = {}
    for path in paths:
        artifact = read(path, verify=verify)
        if artifact.manifest.variant != path.name:
            raise ArtifactMalformed(
                f"{path}: its manifest is of variant {artifact.manifest.variant!r}; folder and variant "
                "must have the same name"
            )
        found[path.name] = artifact
    if not found:
        raise ArtifactMissing(f"{root}: no variant here; make them with `hybrid-router optimize`")
    return found


def write(folder: str | os.PathLike[str], manifest: Manifest, files: Mapping[str, bytes | Path]) -> Artifact:
    """Write a variant under the model's ``folder`` and give it back; replaces one of the same name.

    ``files`` maps plain names to contents or to files that are copied; the manifest's ``files``
    are filled in from them. The folder is complete on disk before it takes its name, so a reader
    finds the old variant, the new one, or (for an instant while one replaces the other) none.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    target = root / check_name(manifest.variant)
    temporary = Path(tempfile.mkdtemp(prefix=f".{manifest.variant}.", dir=root))
    try:
        temporary.chmod(0o755)
        entries = {check_name(name): _put(temporary / name, content) for name, content in files.items()}
        raw = orjson.dumps(
            replace(manifest, files=entries).to_json(),
            option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY,
        )
        _put(temporary / MANIFEST, raw)
        manifest = Manifest.from_json(orjson.loads(raw))  # just what a reader will find
        if target.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{manifest.variant}.old.", dir=root))
            try:
                target.rename(retired / "was")
                temporary.rename(target)
            finally:
                shutil.rmtree(retired, ignore_errors=True)
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Artifact(target, manifest)


def _put(path: Path, content: bytes | Path) -> FileEntry:
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content)
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    return FileEntry(digest(path), path.stat().st_size)
