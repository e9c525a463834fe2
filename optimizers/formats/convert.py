"""From one form of model to another, verified on real inputs before it is trusted.

torch to ONNX uses torch's own TorchScript-based exporter: it needs no further package and takes a
fraction of a second, where the newer one needs onnxscript and several. scikit-learn to ONNX is
skl2onnx, ONNX and torch to OpenVINO its own converter: the maintained tool in each case.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from pathlib import Path

import numpy as np

from optimizers.formats import graphs
from optimizers.formats.deployed import deployed, example_inputs
from optimizers.formats.errors import PassError, typed
from optimizers.formats.in_memory import predictor
from optimizers.task import Task, TaskModel

OPSET = 17
#: Of the operators for trees and linear models (ai.onnx.ml): the newest that skl2onnx writes.
OPSET_ML = 3

#: Largest difference that a conversion may make, relative to the largest magnitude of the output.
#: Float32 sums in another order stay well below it; a wrong graph does not.
TOLERANCE = 1e-3
VERIFY_ROWS = 64


class ConversionError(PassError):
    """The converted model does not answer real inputs as its source does."""


def torch_to_onnx(model: TaskModel, task: Task) -> TaskModel:
    """ONNX with a free batch axis (and free axes where a spec says -1), verified against torch."""
    import onnx
    import torch

    module = deployed(model)
    batch = example_inputs(task)
    predictor(model, task)(batch)  # what is wrong with the module itself is said before it is traced
    names = [spec.name for spec in model.inputs]
    axes = {
        spec.name: {i: f"{spec.name}_{i}" if i else "rows" for i, d in enumerate(spec.shape) if d == -1}
        for spec in (*model.inputs, *model.outputs)
    }
    failed = typed("torch cannot export the module to ONNX", "name runtime: torch to serve it without")
    with failed, tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own deprecation, and tracer notes
        path = str(Path(folder) / "model.onnx")
        torch.onnx.export(
            module,
            tuple(torch.from_numpy(np.ascontiguousarray(batch[name])) for name in names),
            path,
            dynamo=False,
            input_names=names,
            output_names=[spec.name for spec in model.outputs],
            dynamic_axes=axes,
            opset_version=OPSET,
        )
        converted = model.becomes(onnx.load(path), form="onnx")
    verify(model, converted, task)
    return converted


def torch_to_openvino(model: TaskModel, task: Task) -> TaskModel:
    """OpenVINO's intermediate representation, by way of the verified ONNX graph."""
    return onnx_to_openvino(torch_to_onnx(model, task), task)


def onnx_to_openvino(model: TaskModel, task: Task) -> TaskModel:
    """OpenVINO's intermediate representation, verified against ONNX Runtime."""
    import openvino

    with typed("OpenVINO cannot convert the ONNX graph", "leave out runtime: openvino for this model"):
        graph = openvino.convert_model(io.BytesIO(model.value.SerializeToString()))
    converted = model.becomes(graph, form="openvino")
    verify(model, converted, task)
    return converted


def sklearn_to_onnx(model: TaskModel, task: Task) -> TaskModel:
    """A fitted scikit-learn estimator as ONNX (skl2onnx), outputs named as the model's specs say."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    (spec,) = model.inputs
    with typed(f"skl2onnx cannot convert a {type(model.value).__name__}"):
        graph = to_onnx(
            model.value,
            initial_types=[(spec.name, FloatTensorType([None, *spec.shape[1:]]))],
            target_opset={"": OPSET, "ai.onnx.ml": OPSET_ML},
        )
    graphs.strip_zipmap(graph)
    # A classifier without probabilities has its decision function there, whose shape varies: left out.
    del graph.graph.output[len(model.outputs) :]
    graphs.rename_outputs(graph, [out.name for out in model.outputs])
    converted = model.becomes(graph, form="onnx")
    verify(model, converted, task)
    return converted


def verify(source: TaskModel, converted: TaskModel, task: Task, tolerance: float = TOLERANCE) -> float:
    """Compare both on real rows; give the largest relative difference.

    Raises :class:`ConversionError` where a float output differs by more than ``tolerance`` of its
    largest magnitude. Integer outputs (labels) may differ only where the floats are that close.
    """
    data = task.train.take(VERIFY_ROWS)
    worst = 0.0
    inputs = task.network_inputs(data.inputs)
    before, after = predictor(source, task)(inputs), predictor(converted, task)(inputs)
    for spec in source.outputs:
        a, b = before[spec.name], after[spec.name]
        if a.shape != b.shape:
            raise ConversionError(
                f"{source.form} -> {converted.form}: output {spec.name!r} has shape {list(b.shape)}, "
                f"the source gives {list(a.shape)}"
            )
        if a.dtype.kind == "f":
            difference = float(np.max(np.abs(a - b)) / max(float(np.max(np.abs(a))), 1e-12))
        else:
            difference = 0.0 if np.mean(a == b) >= 0.98 else 1.0
        worst = max(worst, difference)
    if not worst <= tolerance:
        raise ConversionError(
            f"{source.form} -> {converted.form}: outputs differ by {worst:.3g} of their magnitude on "
            f"{len(data)} training rows, more than {tolerance:g}"
        )
    return worst
