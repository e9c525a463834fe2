"""torch, eager or compiled, on the CPU or CUDA: for what other runtimes cannot run, and for GPUs.

Settings: ``weights`` (safetensors), ``program`` (see :mod:`optimizers.formats.torch_program`), ``compile``
(true to run it through ``torch.compile``; the first batches are then slow), ``threads``, ``device``.

torch has one thread setting per process: the last variant loaded decides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from optimizers.artifact import Artifact, ArtifactMalformed
from optimizers.runner import DeviceMissing
from optimizers.runtimes.torch_program import ProgramError, build
from optimizers.tensors import Tensors, TensorSpec


class TorchRunner:
    """A program on a device."""

    def __init__(
        self,
        module: Any,
        order: list[str],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        device: str,
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.network_inputs = frozenset(order)
        self._module, self._order, self._device = module, order, device

    def run(self, batch: Tensors) -> Tensors:
        with torch.inference_mode():
            given = [self._tensor(batch[name]) for name in self._order]
            answers = self._module(*given)
            return {
                spec.name: (value.float() if value.is_floating_point() else value).cpu().numpy()
                for spec, value in zip(self.outputs, answers, strict=True)
            }

    def _tensor(self, array: Any) -> Any:
        # The codec's arrays are read-only views, of which torch would warn; nothing here writes to them.
        tensor = torch.from_numpy(array if array.flags.writeable else np.array(array))
        return tensor.to(self._device) if self._device != "cpu" else tensor

    def close(self) -> None:
        del self._module


def open_runner(artifact: Artifact, *, threads: int, device: str) -> TorchRunner:
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise DeviceMissing(f"{artifact.path}: torch has no device {device!r} here; use cpu")
    manifest = artifact.manifest
    torch.set_num_threads(threads)
    try:
        program = orjson.loads(artifact.file(str(manifest.settings.get("program"))).read_bytes())
        module = build(program, load_file(artifact.weights()), device)
    except (ProgramError, SafetensorError, orjson.JSONDecodeError) as error:
        raise ArtifactMalformed(f"{artifact.path}: torch cannot load it: {error}") from error
    if manifest.settings.get("compile"):
        module = torch.compile(module, dynamic=True)
    return TorchRunner(module, list(program["inputs"]), manifest.inputs, manifest.outputs, device)
