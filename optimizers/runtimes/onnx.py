"""ONNX Runtime: loads fast, runs anywhere, and is the default for every network.

Settings: ``weights`` (the ONNX file), ``threads``, ``device`` (``cpu`` or ``cuda``), ``fold_weights``
(true: weights stored as integers are unpacked once, at load, and all arithmetic is float).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from optimizers.artifact import Artifact, ArtifactMalformed
from optimizers.runner import DeviceMissing
from optimizers.tensors import Array, TensorError, Tensors, TensorSpec

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def session(model: bytes | Path, *, threads: int = 1, device: str = "cpu", fold_weights: bool = False) -> Any:
    """An inference session. Raises :class:`DeviceMissing`; ONNX Runtime's own errors pass through.

    Idle threads sleep instead of spinning: they share the machine with other replicas.
    """
    provider = PROVIDERS.get(device)
    if provider is None or provider not in onnxruntime.get_available_providers():
        raise DeviceMissing(
            f"ONNX Runtime has no provider for device {device!r} here; it has "
            f"{', '.join(onnxruntime.get_available_providers())}. For CUDA: pip install onnxruntime-gpu"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if fold_weights:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=[provider])


class OnnxRunner:
    """One session. The network's inputs are the artifact's unless it carries its preprocessing."""

    def __init__(
        self, run_session: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._run = run_session.run
        self._names = [spec.name for spec in outputs]
        self.network_inputs = frozenset(node.name for node in run_session.get_inputs())
        texts = [spec.name for spec in inputs if spec.datatype == "BYTES"]
        self._texts = [name for name in texts if name in self.network_inputs]
        missing = set(self._names) - {node.name for node in run_session.get_outputs()}
        if missing:
            raise ArtifactMalformed(f"the ONNX graph has no output {sorted(missing)}")

    def run(self, batch: Tensors) -> Tensors:
        if self._texts:
            batch = {**batch, **{name: _as_text(batch[name], name) for name in self._texts}}
        return dict(zip(self._names, self._run(self._names, batch), strict=True))

    def close(self) -> None:
        del self._run


def _as_text(array: Array, name: str) -> Array:
    """BYTES as ONNX Runtime wants its strings; of ``bytes`` it would take the ``repr``, with b and quotes."""
    text = np.empty(array.size, dtype=object)
    try:
        text[:] = [item.decode() if isinstance(item, bytes) else item for item in array.ravel()]
    except UnicodeDecodeError:
        raise TensorError(f"input {name!r}: strings in ONNX are UTF-8, and these bytes are not") from None
    return text.reshape(array.shape)


def open_runner(artifact: Artifact, *, threads: int, device: str) -> OnnxRunner:
    manifest = artifact.manifest
    path = artifact.weights()
    try:
        fold = bool(manifest.settings.get("fold_weights", False))
        opened = session(path, threads=threads, device=device, fold_weights=fold)
    except DeviceMissing:
        raise
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types for a bad file
        raise ArtifactMalformed(f"{path}: ONNX Runtime cannot load it: {error}") from error
    runner = OnnxRunner(opened, manifest.inputs, manifest.outputs)
    if not manifest.preprocess:
        wanted = {spec.name for spec in manifest.inputs}
        if runner.network_inputs != wanted:
            raise ArtifactMalformed(
                f"{path}: the graph takes {sorted(runner.network_inputs)}, the manifest says {sorted(wanted)}"
            )
    return runner
