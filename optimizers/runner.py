"""``load(artifact)`` gives a :class:`Runner`: the one face of every runtime that can run a variant.

Only the backend that the manifest names is imported, when it is needed: loading an ONNX variant
imports neither torch nor scikit-learn.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from optimizers.artifact import Artifact, ArtifactError, ArtifactMalformed
from optimizers.files import extensions
from optimizers.tensors import Tensors, TensorSpec

#: Runtime name in the manifest -> module with ``open_runner``.
RUNTIMES: dict[str, str] = {
    "onnx": "optimizers.runtimes.onnx",
    "openvino": "optimizers.runtimes.openvino",
    "torch": "optimizers.runtimes.torch",
    "tensorrt": "optimizers.runtimes.tensorrt",
    "trees": "optimizers.runtimes.trees",
    "rules": "optimizers.runtimes.trees",
}
#: Another package adds a runtime through an entry point of this group: its name is the runtime's, its value
#: the module with ``open_runner``, whose ``FORM`` says which form of model it takes (``onnx`` by default).
GROUP = "hybrid_router.runtimes"


class RunnerError(RuntimeError):
    """A variant that cannot be run here.

    ::

        RunnerError
        |- RuntimeUnknown     the manifest names a runtime that neither this release nor another package has
        |- RuntimeMissing     the runtime's package is not installed
        |- DeviceMissing      the device asked for is not there
    """


class RuntimeUnknown(RunnerError):
    """There is no runtime of that name, or the package that has it cannot be loaded."""


class RuntimeMissing(RunnerError):
    """The runtime's package is not installed; the message says which to install."""


class DeviceMissing(RunnerError):
    """The device (``cpu``, ``cuda``) is not available to the runtime on this machine."""


@runtime_checkable
class Runner(Protocol):
    """A loaded variant.

    ``run`` takes and gives tensors whose first axis is rows, in order; it is deterministic, and a
    row's answer does not depend on the batch that it stands in (within the manifest's tolerance).
    It may be called from any one thread at a time, not only from the one that loaded it.
    """

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, batch: Tensors) -> Tensors:
        """All outputs for a batch of one row or more.

        The batch is trusted to be what ``inputs`` says: callers at the edge check it once with
        :func:`optimizers.tensors.check`.
        """
        ...

    def close(self) -> None:
        """Give back threads and memory. ``run`` may not be called again."""
        ...


def runtime_names() -> tuple[str, ...]:
    """The names of all runtimes, those of other packages among them."""
    return (*RUNTIMES, *extensions.names(GROUP))


def runtime_module(name: str) -> Any:
    """The module of a runtime. Raises :class:`RuntimeUnknown`, or what importing it raises."""
    if name in RUNTIMES:
        return import_module(RUNTIMES[name])
    try:
        module = extensions.load(GROUP, name)
    except extensions.ExtensionError as error:
        raise RuntimeUnknown(f"runtime {error}") from error
    if module is None:
        raise RuntimeUnknown(f"runtime {name!r} is unknown; there are {', '.join(sorted(runtime_names()))}")
    if not callable(getattr(module, "open_runner", None)):
        raise RuntimeUnknown(f"runtime {name!r}: its module has no open_runner(artifact, *, threads, device)")
    return module


def load(artifact: Artifact, *, threads: int | None = None, device: str | None = None) -> Runner:
    """A runner for ``artifact``, on ``threads`` threads (default: the manifest's, which is 1).

    Raises :class:`RunnerError` where the runtime, its package or the device is not here, and
    :class:`optimizers.artifact.ArtifactError` where the weights are not what they should be.
    """
    manifest = artifact.manifest
    count = manifest.threads if threads is None else threads
    if count < 1:
        raise ValueError(f"threads must be 1 or more, got {count}")
    where = device or str(manifest.settings.get("device", "cpu"))
    try:
        module = runtime_module(manifest.runtime)
        runner: Runner = module.open_runner(artifact, threads=count, device=where)
        if manifest.preprocess:
            text = import_module("optimizers.runtimes.text")
            runner = text.open_runner(artifact, runner)
    except ModuleNotFoundError as error:
        raise RuntimeMissing(
            f"{artifact.path}: runtime {manifest.runtime!r} needs the Python package {error.name!r}, which "
            f"is not installed: pip install {error.name}"
        ) from error
    except RuntimeUnknown as error:
        raise RuntimeUnknown(f"{artifact.path}: {error}") from error
    except (RunnerError, ArtifactError):
        raise
    except Exception as error:  # whatever else a library raises for weights that are not what they should be
        raise ArtifactMalformed(f"{artifact.path}: it cannot be loaded: {error!r}; make it again") from error
    return runner
