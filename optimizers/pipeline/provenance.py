"""What a result depends on besides its recipe and its data: sources, libraries, the processor.

Keys of what is kept between runs (:mod:`optimizers.pipeline.cache`, finished artifacts, the examples' trained
weights) hold it, so that another release, another library or another machine makes it anew.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from importlib.util import find_spec, resolve_name
from pathlib import Path

import orjson

from optimizers.runtimes import machine

#: Distributions whose version may change what a pass makes, or how fast it runs. Read, never imported.
LIBRARIES = (
    "nncf",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "safetensors",
    "scikit-learn",
    "scipy",
    "skl2onnx",
    "tensorrt",
    "tokenizers",
    "torch",
    "torch-pruning",
)


def digest() -> str:
    """SHA-256 over this package's sources, the versions of :data:`LIBRARIES` and the processor.

    All sources count: passes find conversions, formats and runtimes by name, so that no list of what
    one of them uses would stay whole.
    """
    return _sha256([_package(Path(__file__).parents[1]), _versions(), machine.features()])


@cache
def _package(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("*.py"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _versions() -> dict[str, str]:
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def task_digest(module: str) -> str:
    """SHA-256 over the source of a task's module and of what it imports from the same project.

    Installed packages and the standard library are left out, but for the module's own package.
    """
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = None if name in found else _source(name, module.partition(".")[0])
        if path is None:
            continue
        raw = path.read_bytes()
        found[name] = hashlib.sha256(raw).hexdigest()
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        waiting += _imports(raw, package)
    return _sha256(found)


def _source(name: str, own: str) -> Path | None:
    """The file of a module of the task's project, or None."""
    top = name.partition(".")[0]
    if top == __name__.partition(".")[0] or top in sys.stdlib_module_names:
        return None
    try:
        spec = find_spec(name)
    except Exception:  # importing a parent package runs its code, which may raise anything
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin)
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return None if installed and top != own else path


def _imports(raw: bytes, package: str) -> Iterator[str]:
    """The modules that a source file may import, at its top or in a function; some may be no modules."""
    try:
        tree = ast.parse(raw)
    except (SyntaxError, ValueError):
        return  # importing it says so, if anything does
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            )
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names)


def _sha256(value: object) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()
