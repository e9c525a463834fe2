"""OpenVINO on the CPU: with NNCF's int8 graphs the fastest here for transformers.

Settings: ``weights`` (the .xml file), ``weights_data`` (the .bin file), ``threads``, ``precision``
(``f32``, the default, or ``bf16``: OpenVINO would otherwise choose bf16 silently where the CPU has it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import openvino

from optimizers.artifact import Artifact, ArtifactMalformed, Setting
from optimizers.runner import DeviceMissing
from optimizers.tensors import Tensors, TensorSpec


def compile_model(model: Any, *, threads: int, settings: Mapping[str, Setting]) -> Any:
    """Compile for one synchronous stream of ``threads`` threads at the precision in ``settings``."""
    return openvino.Core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": str(settings.get("precision", "f32")),
        },
    )


class OpenVinoRunner:
    """One compiled model and one inference request."""

    def __init__(
        self, compiled: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        names = {name for port in compiled.outputs for name in port.get_names()}
        missing = {spec.name for spec in outputs} - names
        if missing:
            raise ArtifactMalformed(f"the OpenVINO graph has no output {sorted(missing)}")
        self.network_inputs = frozenset(port.get_any_name() for port in compiled.inputs if port.get_names())
        known = {name for port in compiled.inputs for name in port.get_names()}
        self._unread = frozenset(spec.name for spec in inputs) - known
        self._request = compiled.create_infer_request()
        self._ports = {spec.name: compiled.output(spec.name) for spec in outputs}

    def run(self, batch: Tensors) -> Tensors:
        # shared memory in: no copy of the batch; results are copied out of the request's buffers,
        # which the next run overwrites.
        if self._unread:  # inputs that nothing in the graph reads have no place here
            batch = {name: array for name, array in batch.items() if name not in self._unread}
        results = self._request.infer(batch, share_inputs=True, share_outputs=False)
        return {name: results[port] for name, port in self._ports.items()}

    def close(self) -> None:
        del self._request, self._ports


def open_runner(artifact: Artifact, *, threads: int, device: str) -> OpenVinoRunner:
    if device != "cpu":
        raise DeviceMissing(f"{artifact.path}: the OpenVINO runtime is for device 'cpu', not {device!r}")
    manifest = artifact.manifest
    path = artifact.weights()
    try:
        model = openvino.Core().read_model(str(path))
        compiled = compile_model(model, threads=threads, settings=manifest.settings)
    except RuntimeError as error:
        raise ArtifactMalformed(f"{path}: OpenVINO cannot load it: {error}") from error
    return OpenVinoRunner(compiled, manifest.inputs, manifest.outputs)
