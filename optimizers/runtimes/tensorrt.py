"""TensorRT on the GPU that its engine was built on. Setting: ``weights`` (the engine file).

An engine is machine code: TensorRT checks that it fits the GPU and its own version, but trust an
artifact of this runtime as you would a program.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorrt
import torch

from optimizers.artifact import Artifact, ArtifactMalformed
from optimizers.runner import DeviceMissing
from optimizers.tensors import Tensors, TensorSpec


class TensorRtRunner:
    """One execution context; tensors are handed over through torch's CUDA memory."""

    def __init__(self, engine: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._engine, self._context = engine, engine.create_execution_context()
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        self._taken = [n for n in names if modes[n] == tensorrt.TensorIOMode.INPUT]
        self.network_inputs = frozenset(self._taken)
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def run(self, batch: Tensors) -> Tensors:
        with torch.cuda.stream(self._stream):
            held = []  # keeps the inputs alive until the stream is done with them
            for name in self._taken:
                tensor = torch.from_numpy(np.array(batch[name])).cuda(non_blocking=True)
                self._context.set_input_shape(name, tuple(tensor.shape))
                self._context.set_tensor_address(name, tensor.data_ptr())
                held.append(tensor)
            answers = {spec.name: self._room(spec) for spec in self.outputs}
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise RuntimeError("TensorRT refused the batch; its log says why")
            self._stream.synchronize()
            return {name: tensor.cpu().numpy() for name, tensor in answers.items()}

    def _room(self, spec: TensorSpec) -> Any:
        dtype = torch.from_numpy(np.empty(0, dtype=spec.dtype)).dtype
        room = torch.empty(tuple(self._context.get_tensor_shape(spec.name)), dtype=dtype, device="cuda")
        self._context.set_tensor_address(spec.name, room.data_ptr())
        return room

    def close(self) -> None:
        del self._context, self._engine


def open_runner(artifact: Artifact, *, threads: int, device: str) -> TensorRtRunner:
    if not torch.cuda.is_available():
        raise DeviceMissing(f"{artifact.path}: TensorRT needs an NVIDIA GPU, and CUDA sees none here")
    runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(artifact.weights().read_bytes())
    if engine is None:
        raise ArtifactMalformed(f"{artifact.weights()}: not an engine for this GPU and TensorRT version")
    return TensorRtRunner(engine, artifact.manifest.inputs, artifact.manifest.outputs)
