"""Artifacts: what is written is read back; what is damaged, foreign or newer is refused by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from optimizers import artifact
from optimizers.artifact import (
    Artifact,
    ArtifactError,
    ArtifactMalformed,
    ArtifactMissing,
    ArtifactNewer,
    ArtifactTampered,
    Manifest,
)
from optimizers.profile import fit
from optimizers.tensors import TensorSpec

MANIFEST = Manifest(
    model="digits",
    variant="int8",
    runtime="onnx",
    inputs=(TensorSpec("image", "FP32", (-1, 4)),),
    outputs=(TensorSpec("label", "INT64", (-1,)),),
    metric="accuracy",
    quality={"accuracy": 0.98, "quality_drop": 0.01},
    profile=fit({1: [1.0, 1.2], 8: [2.0, 2.5]}),
    size_bytes=7,
    parameters=3,
    settings={"weights": "model.onnx", "threads": 2},
    notes={"sensitivity": [{"layer": "a", "quality_cost": 0.1}]},
)


@pytest.fixture
def written(tmp_path: Path) -> Artifact:
    return artifact.write(tmp_path, MANIFEST, {"model.onnx": b"weights"})


def _edit(found: Artifact, **changes: Any) -> None:
    path = found.path / artifact.MANIFEST
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **changes}))


def test_what_is_written_is_read_back(written: Artifact) -> None:
    found = artifact.read(written.path)
    assert found.manifest == written.manifest
    assert found.weights().read_bytes() == b"weights"
    assert found.manifest.quality_drop == 0.01 and found.manifest.threads == 2


def test_files_are_copied_from_paths(tmp_path: Path) -> None:
    source = tmp_path / "tokenizer.json"
    source.write_bytes(b"{}")
    made = artifact.write(tmp_path / "out", MANIFEST, {"model.onnx": b"w", "tokenizer.json": source})
    assert artifact.read(made.path).file("tokenizer.json").read_bytes() == b"{}"
    assert source.exists()


def test_a_variant_replaces_the_one_of_its_name_and_leaves_nothing_else(written: Artifact) -> None:
    folder = written.path.parent
    artifact.write(folder, replace(MANIFEST, parameters=9), {"model.onnx": b"other"})
    assert artifact.read(written.path).manifest.parameters == 9
    assert [p.name for p in folder.iterdir()] == ["int8"]


def test_a_failed_write_leaves_the_old_variant_whole(written: Artifact) -> None:
    with pytest.raises(FileNotFoundError):
        artifact.write(written.path.parent, MANIFEST, {"model.onnx": Path("/nowhere/at/all")})
    assert artifact.read(written.path).manifest == written.manifest
    assert [p.name for p in written.path.parent.iterdir()] == ["int8"]


def test_read_all_gives_variants_by_name(written: Artifact) -> None:
    artifact.write(written.path.parent, replace(MANIFEST, variant="float32"), {"model.onnx": b"f"})
    assert list(artifact.read_all(written.path.parent)) == ["float32", "int8"]


def test_a_folder_that_was_renamed_is_refused(written: Artifact) -> None:
    written.path.rename(written.path.parent / "other")
    with pytest.raises(ArtifactMalformed, match="same name"):
        artifact.read_all(written.path.parent)


def test_missing_folder_manifest_or_file(written: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="optimize"):
        artifact.read(tmp_path / "nothing")
    with pytest.raises(ArtifactMissing):
        artifact.read_all(tmp_path / "nothing")
    (written.path / "model.onnx").unlink()
    with pytest.raises(ArtifactMissing, match=r"model\.onnx"):
        artifact.read(written.path)


def test_a_truncated_file_is_refused_even_without_digests(written: Artifact) -> None:
    os.truncate(written.path / "model.onnx", 3)
    with pytest.raises(ArtifactTampered, match="3 bytes"):
        artifact.read(written.path, verify=False)


def test_a_file_of_the_same_size_with_other_content_is_refused(written: Artifact) -> None:
    (written.path / "model.onnx").write_bytes(b"WEIGHTS")
    with pytest.raises(ArtifactTampered, match="SHA-256"):
        artifact.read(written.path)


def test_a_newer_format_is_refused_with_what_to_do(written: Artifact) -> None:
    _edit(written, format_version=artifact.FORMAT_VERSION + 1)
    with pytest.raises(ArtifactNewer, match="upgrade"):
        artifact.read(written.path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format_version": "1"}, "format_version"),
        ({"inputs": [{"name": "x", "datatype": "FP31", "shape": [-1]}]}, "FP31"),
        ({"quality": {"accuracy": 1.0}}, "quality_drop"),
        ({"profile": {"points": []}}, "profile"),
        ({"files": {"../../etc/passwd": {"sha256": "", "size_bytes": 0}}}, "plain name"),
        ({"files": {"a": {}}}, "sha256"),
        ({"settings": None}, "NoneType"),
    ],
)
def test_a_malformed_manifest_is_refused_by_what_is_wrong(
    written: Artifact, changes: dict[str, Any], says: str
) -> None:
    _edit(written, **changes)
    with pytest.raises(ArtifactMalformed, match=says):
        artifact.read(written.path)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff"])
def test_a_manifest_that_is_no_object_is_refused(written: Artifact, raw: bytes) -> None:
    (written.path / artifact.MANIFEST).write_bytes(raw)
    with pytest.raises(ArtifactMalformed, match=r"manifest\.json"):
        artifact.read(written.path)


def test_a_file_outside_the_manifest_is_not_given(written: Artifact) -> None:
    with pytest.raises(ArtifactMalformed, match="not in the manifest"):
        written.file("other")
    with pytest.raises(ArtifactMalformed, match="weights"):
        Artifact(written.path, replace(written.manifest, settings={})).weights()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", ".hidden"])
def test_a_name_that_could_lead_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="plain name"):
        artifact.write(tmp_path, replace(MANIFEST, variant=name), {})


def test_what_cannot_be_read_at_all_is_missing(written: Artifact) -> None:
    for path in ("a\0b", "x" * 300, str(written.path / "model.onnx")):
        with pytest.raises(ArtifactMissing):
            artifact.read(path)
    weights = written.path / "model.onnx"
    weights.unlink()
    weights.mkdir()
    _edit(written, files={"model.onnx": {"sha256": "0", "size_bytes": weights.stat().st_size}})
    with pytest.raises(ArtifactMissing, match=r"model\.onnx: cannot be read"):
        artifact.read(written.path)
    manifest = written.path / artifact.MANIFEST
    manifest.unlink()
    manifest.mkdir()
    with pytest.raises(ArtifactMissing, match=r"manifest\.json.*cannot be read"):
        artifact.read(written.path)


RUBBISH = (None, -1, 1.5, True, "", "x", "../x", "a\0b", [], [None], {}, {"a": 1}, [[1]], 1e308, 2**60)


def test_whatever_stands_in_a_manifest_only_our_errors_come_out(written: Artifact) -> None:
    path = written.path / artifact.MANIFEST
    good = path.read_bytes()
    refused = 0
    for place in _places(orjson.loads(good)):
        for rubbish in RUBBISH:
            value: Any = orjson.loads(good)
            inner = value
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = rubbish
            path.write_bytes(orjson.dumps(value))
            try:
                artifact.read(written.path)
            except ArtifactError:
                refused += 1
    assert refused > 100


def _places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every member of a JSON value, at any depth."""
    members = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inner in members:
        yield (*before, key)
        yield from _places(inner, (*before, key))
