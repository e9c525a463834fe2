"""The pass ``cluster``: weights of an ONNX model as code books and indices, unpacked when it is loaded.

Each tensor becomes its shared values and a Gather with 8 or 4 bit indices (for up to 16 values, two
in a byte). A runtime computes that once, while it loads, from constants alone: the file is a
quarter or an eighth of the size, the speed that of float. ONNX has no clustered tensor of its own, and
no kept library writes one; the operators used are in every runtime.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from optimizers.formats import graphs
from optimizers.formats.errors import PassError
from optimizers.formats.forms import convert
from optimizers.passes.code_book import cluster_values, pack_pairs
from optimizers.passes.technique import PassSpec, Technique, check_training, within
from optimizers.passes.training import fit
from optimizers.task import PassContext, TaskModel
from optimizers.tensors import Array


@dataclass(frozen=True)
class Cluster(PassSpec):
    """Each weight tensor stored as an index into a code book of ``clusters`` values of its own.

    The values are found by k-means in one dimension. Layers with fewer than ``least`` weights are
    left alone. With ``epochs`` the code books are trained, the indices staying as they are.
    """

    kind: ClassVar[str] = "cluster"
    clusters: int = 16
    least: int = 256
    epochs: int = 0
    learning_rate: float = 1e-4
    batch: int = 64
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        within(self, "clusters", 2, 256)
        within(self, "least", 1, 1_000_000_000)
        check_training(self, least_epochs=0)


def cluster(model: TaskModel, spec: Cluster, context: PassContext) -> TaskModel:
    """``model`` in ONNX form with its large weights clustered; the notes list each tensor's values.

    A torch model is trained on for ``spec.epochs`` with the indices fixed, so that the shared values
    learn to stand for their weights. Raises :class:`PassError` where there is nothing to cluster.
    """
    if spec.epochs:
        if model.form != "torch":
            raise PassError(f"code books are trained in torch, not in {model.form!r}; set epochs: 0")
        model = model.becomes(_trained(model.value, spec, context))
    graph = copy.deepcopy(convert(model, "onnx", context.task).value)
    before = [(home, tensor) for home in graphs.walk(graph.graph) for tensor in _weights(home, spec)]
    if not before:
        raise PassError(
            f"no weight has {spec.least} values or more (exclude: {list(spec.exclude)}); lower least"
        )
    parameters = sum(int(np.prod(i.dims)) for each in graphs.walk(graph.graph) for i in each.initializer)
    total = sum(int(np.prod(tensor.dims)) for _, tensor in before)
    books, zeros = {}, 0
    for home, tensor in before:
        array = _array(tensor)
        values, indices = cluster_values(array, spec.clusters)
        zeros += int(np.count_nonzero(values[indices] == 0))
        books[tensor.name] = {"values": len(values), "error": _relative_error(array, values[indices])}
        for node in reversed(_encode(home, tensor, values, indices)):
            home.node.insert(0, node)
    _check(graph)
    context.progress(f"{len(books)} tensors with at most {spec.clusters} values each")
    notes = {"structure": {"code_books": books}, "parameters": parameters, "sparsity": zeros / total}
    return model.becomes(graph, form="onnx", **notes)


def _weights(graph: Any, spec: Cluster) -> list[Any]:
    """The float32 constants to cluster: matrices and more, of ``spec.least`` values, not excluded."""
    from fnmatch import fnmatchcase

    from onnx import TensorProto

    return [
        init
        for init in graph.initializer
        if init.data_type == TensorProto.FLOAT
        and len(init.dims) > 1
        and np.prod(init.dims) >= spec.least
        and not any(fnmatchcase(init.name, pattern) for pattern in spec.exclude)
    ]


def _array(tensor: Any) -> Array:
    from onnx import numpy_helper

    array: Array = numpy_helper.to_array(tensor)
    return array


def _relative_error(before: Array, after: Array) -> float:
    """Root mean square of the change over that of the weights; six digits, for it is only to be read."""
    change = float(np.sqrt(np.mean(np.square(before - after))))
    return round(change / max(float(np.sqrt(np.mean(np.square(before)))), 1e-30), 6)


def _encode(graph: Any, tensor: Any, values: Array, indices: Array) -> list[Any]:
    """Replace an initializer by the nodes that compute it, to be put first; its name stays."""
    from onnx import TensorProto, helper, numpy_helper

    name, shape = tensor.name, list(tensor.dims)
    graph.initializer.remove(tensor)
    table, codes = values, indices
    # A table of pairs takes 2 KiB: worth it where half a byte per weight saves more than that.
    if len(values) <= 16 and indices.size % 2 == 0 and indices.size > 2 * 2048:
        table, codes = pack_pairs(values, indices)
    graph.initializer.extend(
        [numpy_helper.from_array(table, f"{name}.values"), numpy_helper.from_array(codes, f"{name}.indices")]
    )
    nodes = [
        helper.make_node("Cast", [f"{name}.indices"], [f"{name}.wide"], to=TensorProto.INT32),
        helper.make_node("Gather", [f"{name}.values", f"{name}.wide"], [name]),
    ]
    if codes is not indices:
        nodes[-1].output[0] = f"{name}.pairs"
        graph.initializer.append(numpy_helper.from_array(np.array(shape, dtype=np.int64), f"{name}.shape"))
        nodes.append(helper.make_node("Reshape", [f"{name}.pairs", f"{name}.shape"], [name]))
    return nodes


def _check(graph: Any) -> None:
    import onnx

    try:
        onnx.checker.check_model(graph)
    except onnx.checker.ValidationError as error:
        raise PassError(f"the clustered graph is not valid ONNX: {error}") from error


def _trained(module: Any, spec: Cluster, context: PassContext) -> Any:
    """A copy with every large weight clustered and its code book trained, as plain weights again.

    Batch normalisation is folded into the convolution before it: the export would do it, and scale
    each channel's values apart after they were made to be shared.
    """
    import torch
    from torch.fx.experimental.optimization import fuse
    from torch.nn.utils import parametrize

    from optimizers.passes.importance import prunable

    class CodeBook(torch.nn.Module):
        indices: torch.Tensor

        def __init__(self, values: Array, indices: Array) -> None:
            super().__init__()
            self.values = torch.nn.Parameter(torch.from_numpy(values))
            self.register_buffer("indices", torch.from_numpy(indices.astype(np.int64)))

        def forward(self, original: Any) -> Any:
            return self.values[self.indices]

    try:
        module = fuse(copy.deepcopy(module).eval())
    except (torch.fx.proxy.TraceError, TypeError) as error:
        raise PassError(
            f"this network cannot be traced to train its code books ({error}); set epochs: 0"
        ) from error
    layers = []
    for name, weight in prunable(module, spec.exclude).items():
        if weight.numel() >= spec.least:
            layer = module.get_submodule(name.rpartition(".")[0])
            book = CodeBook(*cluster_values(weight.detach().numpy(), spec.clusters))
            parametrize.register_parametrization(layer, "weight", book)
            layers.append(layer)
    fit(
        module,
        context.task.train,
        epochs=spec.epochs,
        learning_rate=spec.learning_rate,
        batch=spec.batch,
        seed=context.seed,
        progress=lambda epoch, loss: context.progress(f"epoch {epoch + 1}/{spec.epochs}, loss {loss:.4f}"),
    )
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return module


TECHNIQUE = Technique(Cluster, ("torch", "onnx"), cluster)
