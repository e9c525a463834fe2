"""TensorRT engines, built from the ONNX graph where the ``tensorrt`` package and an NVIDIA GPU are.

Anywhere else :class:`NotAvailable` says what is missing and the variant is skipped: an engine is
good only for the GPU model it was built on, so there is nothing useful to make without one.
"""

from __future__ import annotations

from typing import Any

from optimizers.formats.errors import NotAvailable, PassError
from optimizers.formats.packed import Packed
from optimizers.task import Task, TaskModel

#: Rows that the engine's optimization profile allows, at least, best and at most.
_ROWS = (1, 32, 256)


def require() -> Any:
    """The ``tensorrt`` package. Raises :class:`NotAvailable` with what is missing."""
    try:
        import tensorrt
    except ModuleNotFoundError:
        raise NotAvailable(
            "TensorRT is not available here: the Python package tensorrt is not installed"
        ) from None
    import torch

    if not torch.cuda.is_available():
        raise NotAvailable("TensorRT is not available here: no NVIDIA GPU is visible to CUDA")
    return tensorrt


def pack_engine(model: TaskModel, task: Task) -> Packed:
    """An ONNX-form model as a serialized engine for this machine's GPU.

    Raises :class:`NotAvailable`, or :class:`PassError` with the parser's own messages.
    """
    tensorrt = require()
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(model.value.SerializeToString()):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise PassError(f"TensorRT cannot read the ONNX graph: {reasons}")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    sizes = task.network_inputs(task.train.take(2).inputs)
    for spec in model.inputs:
        shape = [n if n != -1 else sizes[spec.name].shape[i] for i, n in enumerate(spec.shape)]
        profile.set_shape(spec.name, *((rows, *shape[1:]) for rows in _ROWS))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise PassError("TensorRT could not build an engine; its log says why")
    files = {"model.engine": bytes(engine)}
    return Packed("tensorrt", files, {**model.settings, "weights": "model.engine", "device": "cuda"})
