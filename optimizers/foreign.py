"""Models from elsewhere: an ONNX file (from any framework), a fitted scikit-learn estimator.

A model that was optimized elsewhere, say by the TensorFlow Model Optimization Toolkit and tf2onnx,
is a variant like any other: the pass ``import_onnx`` puts it in the original's place, and it is
measured like the rest. :func:`task` makes a task of files alone, without code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from optimizers.artifact import digest
from optimizers.passes import PassError
from optimizers.recipe import RecipeError
from optimizers.spec_import import ImportOnnx
from optimizers.task import Context, Dataset, Metric, Model, Predict, Task
from optimizers.tensors import DTYPES, Tensors, TensorSpec

#: Member of a data file that holds the targets.
TARGET = "target"


def from_onnx(path: Path) -> Model:
    """The model in an ONNX file, its inputs and outputs as the graph declares them.

    Raises :class:`PassError` for a file that is no valid ONNX, keeps weights in other files, has an
    element type that the protocol lacks, or a fixed batch axis.
    """
    import onnx

    try:
        graph = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(graph)
    except Exception as error:  # protobuf, onnx.checker and OSError have no common base
        raise PassError(f"{path}: not a valid ONNX file: {error}") from error
    if any(init.external_data for init in graph.graph.initializer):
        raise PassError(f"{path}: its weights are in other files; save it as one file (onnx.save does)")
    weights = {init.name for init in graph.graph.initializer}
    inputs = tuple(_spec(v, path) for v in graph.graph.input if v.name not in weights)
    return Model("onnx", graph, inputs, tuple(_spec(v, path) for v in graph.graph.output))


def _spec(value: Any, path: Path) -> TensorSpec:
    from onnx import TensorProto, helper

    kind = value.type.tensor_type
    name = "BF16" if kind.elem_type == TensorProto.BFLOAT16 else None
    if name is None and kind.elem_type == TensorProto.STRING:
        name = "BYTES"
    if name is None:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        name = next((n for n, d in DTYPES.items() if d == dtype and n != "BF16"), None)
    if name is None:
        raise PassError(f"{path}: {value.name!r} has an element type that has no datatype here")
    shape = tuple(int(d.dim_value) if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    if not shape or shape[0] != -1:
        raise PassError(
            f"{path}: {value.name!r} has shape {list(shape)}; its first axis must be free, for it is the "
            "batch: export it with a dynamic batch axis"
        )
    return TensorSpec(value.name, name, shape)


def from_sklearn(estimator: Any, features: int, *, name: str = "features") -> Model:
    """A fitted scikit-learn estimator over FP32 ``[-1, features]``.

    A classifier with integer classes gives ``label`` INT64 [-1] and, where it has probabilities,
    ``scores`` FP32 [-1, classes]; a regressor gives ``value`` FP32 [-1, 1].
    """
    inputs = (TensorSpec(name, "FP32", (-1, features)),)
    if not hasattr(estimator, "classes_"):
        return Model("sklearn", estimator, inputs, (TensorSpec("value", "FP32", (-1, 1)),))
    classes = np.asarray(estimator.classes_)
    if classes.dtype.kind not in "iu":
        raise PassError(
            f"classes {classes.tolist()[:5]} are not numbers: fit it on class numbers and keep the "
            "names in Task.class_names"
        )
    outputs: tuple[TensorSpec, ...] = (TensorSpec("label", "INT64", (-1,)),)
    if hasattr(estimator, "predict_proba"):
        outputs = (*outputs, TensorSpec("scores", "FP32", (-1, len(classes))))
    return Model("sklearn", estimator, inputs, outputs)


def import_onnx(model: Model, spec: ImportOnnx, context: Context) -> Model:
    """The model in ``spec.file`` in this one's place. Raises :class:`PassError` where it does not fit it.

    Inputs and outputs must have the same types and shapes in the same order; names may differ.
    """
    from optimizers.convert import rename_inputs, rename_outputs

    found = from_onnx(Path(spec.file))
    for what, ours, theirs in (
        ("inputs", model.inputs, found.inputs),
        ("outputs", model.outputs, found.outputs),
    ):
        if [(s.datatype, s.shape) for s in ours] != [(s.datatype, s.shape) for s in theirs]:
            raise PassError(
                f"{spec.file}: its {what} are {[s.to_json() for s in theirs]}, the original's are "
                f"{[s.to_json() for s in ours]}"
            )
    rename_outputs(found.value, [s.name for s in model.outputs])
    rename_inputs(found.value, [s.name for s in model.inputs])
    return replace(model.becomes(found.value, form="onnx", imported=Path(spec.file).name), head="")


def task(
    workdir: Path, progress: Callable[[str], None] = lambda message: None, data: Path | None = None
) -> Task:
    """A classification task of files alone, from the folder ``data`` that the recipe names.

    ``model.onnx``; ``train.npz``, ``validation.npz`` and ``test.npz``, each with one array per input,
    first axis rows, and ``target``, INT64 class numbers. The first integer output is the label.
    """
    if data is None:
        raise RecipeError(
            "this task needs data: a folder with model.onnx, train.npz, validation.npz, test.npz"
        )
    model = from_onnx(data / "model.onnx")
    sets = [_read(data / f"{name}.npz", model) for name in ("train", "validation", "test")]
    label = next((s.name for s in model.outputs if s.datatype.startswith(("INT", "UINT"))), None)
    if label is None:
        raise RecipeError(f"{data / 'model.onnx'}: no integer output to take for the class")

    def accuracy(predict: Predict, rows: Dataset) -> float:
        parts = [np.mean(predict(p.inputs)[label].ravel() == p.targets) * len(p) for p in rows.batches(256)]
        return float(sum(parts) / len(rows))

    def agreement(outputs: Tensors, original: Tensors) -> float:
        return float(np.mean(outputs[label] == original[label]))

    files = [data / "model.onnx", *(data / f"{n}.npz" for n in ("train", "validation", "test"))]
    return Task(
        name=data.name,
        model=model,
        train=sets[0],
        validation=sets[1],
        test=sets[2],
        metric=Metric("accuracy", accuracy),
        fidelity=agreement,
        digest="".join(digest(f) for f in files),
    )


def _read(path: Path, model: Model) -> Dataset:
    """A data set from an .npz file without pickled objects. Raises :class:`RecipeError`."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        targets = arrays.pop(TARGET)
        inputs = {spec.name: arrays[spec.name].astype(spec.dtype, copy=False) for spec in model.inputs}
    except (OSError, KeyError, ValueError) as error:
        wanted = [*(spec.name for spec in model.inputs), TARGET]
        raise RecipeError(f"{path}: needs the arrays {wanted}, without pickled objects ({error})") from None
    return Dataset(inputs, targets.astype(np.int64))
