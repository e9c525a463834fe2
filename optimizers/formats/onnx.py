"""Models in ONNX files, from any framework.

A model that was optimized elsewhere, say by the TensorFlow TaskModel Optimization Toolkit and tf2onnx,
is a variant like any other: the pass ``import_onnx`` puts it in the original's place, and it is
measured like the rest. :func:`task` makes a task of files alone, without code.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from optimizers.artifact import digest
from optimizers.formats import graphs
from optimizers.formats.errors import PassError, RecipeError, said, typed
from optimizers.task import Dataset, Metric, Predict, Task, TaskModel
from optimizers.tensors import DTYPES, Array, Tensors, TensorSpec, check

#: Member of a data file that holds the targets.
TARGET = "target"


def from_onnx(path: Path) -> TaskModel:
    """The model in an ONNX file, its inputs and outputs as the graph declares them.

    The probabilities of a scikit-learn classifier become a tensor, where the file has one mapping per
    row; ``notes["class_names"]`` keeps the names. Raises :class:`PassError` for a file that is no
    valid ONNX, keeps weights in other files, has an element type that the protocol lacks or a fixed
    batch axis, or that ONNX Runtime does not run.
    """
    import onnx
    from onnx import inliner

    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise PassError(f"{str(path)!r}: cannot be read ({said(error)})") from error
    with typed(f"{path}: not a valid ONNX file", "export it again, and check it with onnx.checker"):
        model = onnx.load_model_from_string(raw)
        _one_file(model, path)
        _declare_shapes(model)
        onnx.checker.check_model(model)
        if model.functions:  # exporters put layers into them, where no pass would find the weights' use
            model = inliner.inline_local_functions(model)
    model = graphs.named_nodes(model)
    _weights_are_no_inputs(model)
    names = graphs.strip_zipmap(model)
    inputs = tuple(_spec(v, path) for v in model.graph.input)
    outputs = tuple(_spec(v, path) for v in model.graph.output)
    for what, specs in (("inputs", inputs), ("outputs", outputs)):
        found = [spec.name for spec in specs]
        if not found or len(set(found)) < len(found):
            raise PassError(f"{path}: its {what} are {found}; at least one is needed, each with its own name")
    _runs(model, path)
    return TaskModel("onnx", model, inputs, outputs, notes={"class_names": list(names)} if names else {})


def _one_file(model: Any, path: Path) -> None:
    """Raise for weights in other files: the file alone is what is read, packed and known by its digest."""
    from onnx.external_data_helper import uses_external_data

    tensors = [init for each in graphs.walk(model.graph) for init in each.initializer]
    tensors += [a.t for node in graphs.nodes(model.graph) for a in node.attribute if a.HasField("t")]
    if any(uses_external_data(tensor) for tensor in tensors):
        raise PassError(
            f"{path}: its weights are in other files; load it with onnx.load and save it with onnx.save, "
            "which makes one file"
        )


def _declare_shapes(model: Any) -> None:
    """Outputs without a shape get the one that follows from the graph, where one does."""
    from onnx import shape_inference

    unknown = [v for v in model.graph.output if v.type.WhichOneof("value") == "tensor_type"]
    unknown = [value for value in unknown if not value.type.tensor_type.HasField("shape")]
    if unknown:
        known = {value.name: value for value in shape_inference.infer_shapes(model).graph.output}
        for value in unknown:
            value.CopyFrom(known[value.name])


def _weights_are_no_inputs(model: Any) -> None:
    """Before IR version 4 weights had to stand among the inputs; there, callers could replace them."""
    weights = {init.name for init in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    model.graph.ClearField("input")
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)


def _runs(model: Any, path: Path) -> None:
    """Raise unless ONNX Runtime loads the model: it may be of a later opset, or need other operators."""
    import onnxruntime

    from optimizers.runtimes.onnx import session

    versions = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import)
    with typed(
        f"{path}: ONNX Runtime {onnxruntime.__version__} does not run it (opset {versions})",
        "export it for an older opset, or install a newer onnxruntime",
    ):
        session(model.SerializeToString())


def _spec(value: Any, path: Path) -> TensorSpec:
    from onnx import TensorProto, helper

    which = value.type.WhichOneof("value")
    if which != "tensor_type":
        raise PassError(
            f"{path}: {value.name!r} is no tensor but a {str(which).removesuffix('_type')}; export the model "
            "with tensors only (a scikit-learn classifier: to_onnx(..., options={'zipmap': False}))"
        )
    kind = value.type.tensor_type
    datatype = "BYTES" if kind.elem_type == TensorProto.STRING else None
    known = [t for t in TensorProto.DataType.values() if t not in (TensorProto.UNDEFINED, TensorProto.STRING)]
    if kind.elem_type in known:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        datatype = next((n for n, d in DTYPES.items() if d == dtype and n != "BF16"), None)
    if datatype is None:
        element = TensorProto.DataType.keys()[TensorProto.DataType.values().index(kind.elem_type)]
        raise PassError(
            f"{path}: {value.name!r} has elements of type {element}, which no client can send or read; "
            "add a Cast to FLOAT at the graph's edge"
        )
    if not kind.HasField("shape"):
        raise PassError(f"{path}: {value.name!r} has no shape, and none follows from the graph; declare one")
    shape = tuple(int(d.dim_value) if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    if not shape or shape[0] != -1:
        raise PassError(
            f"{path}: {value.name!r} has shape {list(shape)}; its first axis must be free, for it is the "
            "batch: export it with a dynamic batch axis"
        )
    return TensorSpec(value.name, datatype, shape)


def task(
    workdir: Path, progress: Callable[[str], None] = lambda message: None, data: Path | None = None
) -> Task:
    """A classification task of files alone, from the folder ``data`` that the recipe names.

    ``model.onnx``; ``train.npz``, ``validation.npz`` and ``test.npz``, each with one array per input,
    first axis rows, and ``target``, the classes: numbers, or text for a model whose label is text. The
    label is the first output of integers, or of text, with one value per row.
    """
    if data is None:
        raise RecipeError(
            "this task needs data: a folder with model.onnx, train.npz, validation.npz, test.npz"
        )
    model = from_onnx(data / "model.onnx")
    label = _label(model)
    if label is None:
        raise RecipeError(
            f"{data / 'model.onnx'}: no output of integers or text, one per row, to take for the class: "
            f"its outputs are {[s.to_json() for s in model.outputs]}"
        )
    files = [data / f"{name}.npz" for name in ("train", "validation", "test")]
    sets = [_read(path, model, text=label.datatype == "BYTES") for path in files]

    def classes(outputs: Tensors) -> Array:
        return _text(outputs[label.name]) if label.datatype == "BYTES" else outputs[label.name].ravel()

    def accuracy(predict: Predict, rows: Dataset) -> float:
        parts = [np.mean(classes(predict(p.inputs)) == p.targets) * len(p) for p in rows.batches(256)]
        return float(sum(parts) / len(rows))

    def agreement(outputs: Tensors, original: Tensors) -> float:
        return float(np.mean(classes(outputs) == classes(original)))

    return Task(
        name=data.name,
        model=model,
        train=sets[0],
        validation=sets[1],
        test=sets[2],
        metric=Metric("accuracy", accuracy),
        fidelity=agreement,
        digest="".join(digest(f) for f in (data / "model.onnx", *files)),
        class_names=tuple(model.notes.get("class_names", ())),
    )


def _label(model: TaskModel) -> TensorSpec | None:
    """The output that is the class: the first of integers, else the first of text; one value per row."""
    for kinds in (("INT", "UINT"), ("BYTES",)):
        for spec in model.outputs:
            if spec.datatype.startswith(kinds) and spec.shape[1:] in ((), (1,)):
                return spec
    return None


def _text(array: Array) -> Array:
    """Text [rows] of an array of text or of UTF-8 bytes."""
    items = [x.decode(errors="replace") if isinstance(x, bytes) else str(x) for x in array.ravel()]
    return np.array(items, dtype=str)


def _read(path: Path, model: TaskModel, *, text: bool) -> Dataset:
    """A data set from an .npz file without pickled objects. Raises :class:`RecipeError`."""
    wanted = [*(spec.name for spec in model.inputs), TARGET]
    what = f"{path}: needs the arrays {wanted}, without pickled objects (np.savez makes such a file)"
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise RecipeError(f"{what}; this is a single array, made with np.save")
        with archive:
            arrays = {name: archive[name] for name in archive.files}
        targets = arrays.pop(TARGET)
        inputs = {spec.name: _as(arrays[spec.name], spec) for spec in model.inputs}
        check(inputs, model.inputs)
    except RecipeError:
        raise
    except KeyError as error:
        raise RecipeError(f"{what}; {error} is missing") from None
    except Exception as error:  # numpy, zipfile and zlib have no common base for a damaged file
        raise RecipeError(f"{what}; {said(error)}") from None
    rows = len(next(iter(inputs.values())))
    if targets.shape not in ((rows,), (rows, 1)) or targets.dtype.kind not in ("SU" if text else "iu"):
        raise RecipeError(
            f"{path}: {TARGET!r} must be {rows} class {'names' if text else 'numbers'}, one per row, as the "
            f"model's label gives them; it has shape {list(targets.shape)} and dtype {targets.dtype}"
        )
    return Dataset(inputs, _text(targets) if text else targets.ravel().astype(np.int64))


def _as(array: Array, spec: TensorSpec) -> Array:
    """``array`` in the datatype of ``spec``; text becomes UTF-8 ``bytes``."""
    if spec.datatype == "BYTES" and array.dtype.kind == "U":
        array = np.char.encode(array, "utf-8")
    return array.astype(spec.dtype, copy=False)
