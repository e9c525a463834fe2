"""What is kept between runs is made anew after a change of sources, of libraries or of the processor."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path

import numpy as np
import pytest

from optimizers.examples.common import digest_of
from optimizers.pipeline import provenance
from optimizers.runtimes import machine
from optimizers.task import Dataset


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's own project on the import path: a task, what it imports, and what it does not."""
    before = set(sys.modules)
    (tmp_path / "my_net").mkdir()
    (tmp_path / "my_net" / "__init__.py").write_text("from .layers import width\n")
    (tmp_path / "my_net" / "layers.py").write_text("width = 3\n")
    (tmp_path / "my_late.py").write_text("x = 1\n")
    (tmp_path / "my_other.py").write_text("x = 1\n")
    task = (
        "import json\nimport numpy\nimport my_net\nimport nowhere_at_all\ndef task():\n    import my_late\n"
    )
    (tmp_path / "my_task.py").write_text(task)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


def _add(path: Path) -> str:
    path.write_text(path.read_text() + "# another line\n")
    return provenance.task_digest("my_task")


def test_a_tasks_module_counts_with_all_that_it_imports_of_its_project(project: Path) -> None:
    before = provenance.task_digest("my_task")
    assert provenance.task_digest("my_task") == before
    assert _add(project / "my_other.py") == before  # nobody imports it
    seen = {before}
    for name in ("my_task.py", "my_late.py", "my_net/__init__.py", "my_net/layers.py"):
        seen.add(_add(project / name))
    assert len(seen) == 5


def test_a_task_that_does_not_parse_or_is_not_there_has_a_digest_too(project: Path) -> None:
    (project / "my_late.py").write_text("def broken(:\n")
    assert provenance.task_digest("my_task") != provenance.task_digest("none")


def test_the_version_of_a_library_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before, installed = provenance.digest(), metadata.version
    assert provenance.digest() == before
    changed = {before}
    for library in ("onnxruntime", "torch", "numpy", "skl2onnx", "tensorrt"):
        monkeypatch.setattr(
            metadata, "version", lambda name, library=library: "0" if name == library else installed(name)
        )
        changed.add(provenance.digest())
    assert len(changed) == 6


def test_every_library_that_an_optimizer_module_imports_counts() -> None:
    import ast

    folder = Path(provenance.__file__).parents[1]
    imported = {
        (node.module or "").partition(".")[0]
        if isinstance(node, ast.ImportFrom)
        else alias.name.partition(".")[0]
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    known = {"sklearn": "scikit-learn", "torch_pruning": "torch-pruning"}
    #: They read recipes and data, write reports or run commands; no model passes through them.
    others = {
        "click",
        "jinja2",
        "markupsafe",
        "matplotlib",
        "orjson",
        "pydantic",
        "pydantic_core",
        "rich",
        "yaml",
        "optimizers",
    }
    missing = imported - set(sys.stdlib_module_names) - others - {"__future__"}
    assert {known.get(name, name) for name in missing} <= set(provenance.LIBRARIES)
    assert "onnxruntime" in missing


def test_a_changed_source_of_the_package_counts(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "deep.py").write_text("x = 1\n")
    before = provenance._package.__wrapped__(tmp_path)
    (tmp_path / "inner" / "deep.py").write_text("x = 2\n")
    assert provenance._package.__wrapped__(tmp_path) != before
    real = provenance._package(Path(import_module("optimizers.runner").__file__ or "").parent)
    assert {"formats/onnx_slim.py", "runtimes/onnx.py", "examples/bert.py"} <= set(real)


def test_the_processor_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = provenance.digest()
    monkeypatch.setattr(machine, "features", lambda: ["avx2", "avx512_vnni", "something"])
    assert provenance.digest() != before


def test_the_processors_features_are_read_on_x86_and_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "CPUINFO", about)
    about.write_text("processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2 avx512_vnni\n")
    assert machine.features() == ["avx2", "avx512_vnni", "fpu"]
    about.write_text("processor\t: 0\nFeatures\t: fp asimd\nCPU part\t: 0xd40\n")
    assert machine.features() == ["0xd40", "asimd", "fp"]
    about.unlink()
    assert machine.features() == []


def test_a_digest_of_data_tells_similar_data_apart() -> None:
    def rows(*texts: bytes, targets: list[int] | None = None) -> Dataset:
        array = np.empty(len(texts), dtype=object)
        array[:] = texts
        return Dataset({"text": array}, None if targets is None else np.array(targets))

    different = [
        digest_of("ab", "c"),
        digest_of("a", "bc"),
        digest_of(rows(b"a\0b", b"c")),
        digest_of(rows(b"a", b"b\0c")),
        digest_of(rows(b"a", b"b\0c", targets=[1, 2])),
        digest_of(rows(b"a", b"b\0c"), rows()),
    ]
    assert len(set(different)) == len(different)
