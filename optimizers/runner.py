"""``load(artifact)`` gives a :class:`Runner`: the one face of every runtime that can run a variant.

Only the backend that the manifest names is imported, when it is needed: loading an ONNX variant
imports neither torch nor scikit-learn.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, runtime_checkable

from optimizers.artifact import Artifact, ArtifactError, ArtifactMalformed
from optimizers.tensors import Tensors, TensorSpec

#: Runtime name in the manifest -> (module with ``open_runner``, pip package that it needs).
RUNTIMES: dict[str, tuple[str, str]] = {
    "onnx": ("optimizers.runtimes.onnx", "onnxruntime"),
    "openvino": ("optimizers.runtimes.openvino", "openvino"),
    "torch": ("optimizers.runtimes.torch", "torch"),
    "tensorrt": ("optimizers.runtimes.tensorrt", "tensorrt"),
    "trees": ("optimizers.runtimes.trees", "numpy"),
    "rules": ("optimizers.runtimes.trees", "numpy"),
}


class RunnerError(RuntimeError):
    """A variant that cannot be run here.

    ::

        RunnerError
        |- RuntimeUnknown     the manifest names a runtime that this release does not have
        |- RuntimeMissing     the runtime's package is not installed
        |- DeviceMissing      the device asked for is not there
    """


class RuntimeUnknown(RunnerError):
    """The manifest's runtime is not one of :data:`RUNTIMES`."""


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


def load(artifact: Artifact, *, threads: int | None = None, device: str | None = None) -> Runner:
    """A runner for ``artifact``, on ``threads`` threads (default: the manifest's, which is 1).

    Raises :class:`RunnerError` where the runtime, its package or the device is not here, and
    :class:`optimizers.artifact.ArtifactError` where the weights are not what they should be.
    """
    manifest = artifact.manifest
    try:
        module_name, package = RUNTIMES[manifest.runtime]
    except KeyError:
        raise RuntimeUnknown(
            f"{artifact.path}: runtime {manifest.runtime!r} is unknown; this release has "
            f"{', '.join(sorted(RUNTIMES))}"
        ) from None
    count = manifest.threads if threads is None else threads
    if count < 1:
        raise ValueError(f"threads must be 1 or more, got {count}")
    where = device or str(manifest.settings.get("device", "cpu"))
    try:
        module = import_module(module_name)
        runner: Runner = module.open_runner(artifact, threads=count, device=where)
        if manifest.preprocess:
            text = import_module("optimizers.runtimes.text")
            runner = text.open_runner(artifact, runner)
    except ModuleNotFoundError as error:
        raise RuntimeMissing(
            f"{artifact.path}: runtime {manifest.runtime!r} needs the Python package {error.name!r}, which "
            f"is not installed: pip install {package if error.name != 'tokenizers' else 'tokenizers'}"
        ) from error
    except (RunnerError, ArtifactError):
        raise
    except Exception as error:  # whatever else a library raises for weights that are not what they should be
        raise ArtifactMalformed(f"{artifact.path}: it cannot be loaded: {error!r}; make it again") from error
    return runner
