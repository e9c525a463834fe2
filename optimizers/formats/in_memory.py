"""Run a model that is still in memory: to compare, to scan, to choose between candidates.

What is reported of a finished variant is measured on its artifact, through its runner, not here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from optimizers.formats.errors import FormError, typed
from optimizers.task import Predict, Task, TaskModel
from optimizers.tensors import Tensors


def predictor(model: TaskModel, task: Task, threads: int = 1) -> Predict:
    """A function from network inputs to the model's outputs (deployed form)."""
    if model.form == "torch":
        return _torch(model)
    if model.form == "onnx":
        return _onnx(model, threads)
    if model.form == "openvino":
        return _openvino(model, threads)
    if model.form == "sklearn":
        return _sklearn(model)
    raise FormError(f"a model of form {model.form!r} runs only as a packed artifact")


def _torch(model: TaskModel) -> Predict:
    import torch

    from optimizers.formats.deployed import deployed

    module = deployed(model)
    names = [spec.name for spec in model.inputs]

    def predict(inputs: Tensors) -> Tensors:
        with torch.inference_mode(), typed("the module does not run on the model's inputs"):
            answers = module(*(torch.from_numpy(np.array(inputs[name])) for name in names))
        return {s.name: a.numpy() for s, a in zip(model.outputs, answers, strict=True)}

    return predict


def _onnx(model: TaskModel, threads: int) -> Predict:
    from optimizers.runtimes.onnx import OnnxRunner, session

    fold = bool(model.settings.get("fold_weights", False))
    opened = session(model.value.SerializeToString(), threads=threads, fold_weights=fold)
    return OnnxRunner(opened, model.inputs, model.outputs).run


def _openvino(model: TaskModel, threads: int) -> Predict:
    from optimizers.runtimes.openvino import OpenVinoRunner, compile_model

    compiled = compile_model(model.value, threads=threads, settings=model.settings)
    return OpenVinoRunner(compiled, model.inputs, model.outputs).run


def _sklearn(model: TaskModel) -> Predict:
    estimator: Any = model.value
    (spec,) = model.inputs

    def predict(inputs: Tensors) -> Tensors:
        x = inputs[spec.name]
        answers = [estimator.predict(x)]
        if len(model.outputs) > 1:
            answers.append(estimator.predict_proba(x).astype(np.float32))
        return {
            s.name: np.asarray(a).astype(s.dtype, copy=False).reshape((len(x), *s.shape[1:]))
            for s, a in zip(model.outputs, answers, strict=True)
        }

    return predict
