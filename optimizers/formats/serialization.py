"""Models as files without pickle, and back: what the cache keeps and what artifacts are made of.

A torch module is kept as its weights alone (safetensors) and built anew by the task's architecture
of its name; weights of another shape than the architecture's (channels were pruned) reshape it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizers.formats.errors import FormError
from optimizers.formats.packed import Packed
from optimizers.runtimes.decision_tree import Tree
from optimizers.runtimes.rule_list import RuleList
from optimizers.runtimes.trees import read_rules, read_tree, rules_bytes, tree_bytes
from optimizers.task import Task, TaskModel

#: Attributes of torch layers that repeat a size of their weight: layer type -> {attribute: axis}.
_SIZES: dict[str, dict[str, int]] = {
    "Conv1d": {"out_channels": 0},
    "Conv2d": {"out_channels": 0},
    "Conv3d": {"out_channels": 0},
    "Linear": {"out_features": 0, "in_features": 1},
    "Embedding": {"num_embeddings": 0, "embedding_dim": 1},
    "BatchNorm1d": {"num_features": 0},
    "BatchNorm2d": {"num_features": 0},
    "BatchNorm3d": {"num_features": 0},
    "GroupNorm": {"num_channels": 0},
}


def pack_torch(model: TaskModel, task: Task) -> Packed:
    from safetensors.torch import save

    state = {name: tensor.contiguous().clone() for name, tensor in model.value.state_dict().items()}
    return Packed("torch", {"model.safetensors": save(state)}, {"weights": "model.safetensors"})


def unpack_torch(packed: Packed, model: TaskModel, task: Task) -> Any:
    """The module, in eval mode. Raises :class:`FormError` where the task cannot build it."""
    from safetensors.torch import load

    build = task.architectures.get(model.architecture)
    if build is None:
        raise FormError(
            f"task {task.name!r} has no architecture {model.architecture!r} to load weights into; "
            f"it has {sorted(task.architectures) or 'none'}"
        )
    module = build()
    state = load(packed.files["model.safetensors"])
    reshape(module, state)
    module.load_state_dict(state)
    return module.eval()


def reshape(module: Any, state: Mapping[str, Any]) -> None:
    """Give a torch module's parameters and buffers the shapes and dtypes that ``state`` has.

    Layers' own records of their sizes follow; a grouped convolution keeps its channels per group.
    """
    import torch

    for prefix, layer in module.named_modules():
        for name in [*layer._parameters, *layer._buffers]:
            tensor = state.get(f"{prefix}.{name}" if prefix else name)
            old = getattr(layer, name)
            if tensor is None or old is None or (old.shape == tensor.shape and old.dtype == tensor.dtype):
                continue
            new = torch.empty_like(tensor)
            setattr(layer, name, torch.nn.Parameter(new) if name in layer._parameters else new)
        weight = getattr(layer, "weight", None)
        if weight is None:
            continue
        kind = type(layer).__name__
        for attribute, axis in _SIZES.get(kind, {}).items():
            setattr(layer, attribute, int(weight.shape[axis]))
        if kind.startswith("Conv"):
            if layer.groups > 1 and weight.shape[1] == 1:
                layer.groups = int(weight.shape[0])
            layer.in_channels = int(weight.shape[1]) * layer.groups


def pack_onnx(model: TaskModel, task: Task) -> Packed:
    return Packed("onnx", {"model.onnx": model.value.SerializeToString()}, {"weights": "model.onnx"})


def unpack_onnx(packed: Packed, model: TaskModel, task: Task) -> Any:
    import onnx

    return onnx.load_model_from_string(packed.files["model.onnx"])


def pack_openvino(model: TaskModel, task: Task) -> Packed:
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(model.value, Path(folder) / "model.xml", compress_to_fp16=False)
        files = {name: (Path(folder) / name).read_bytes() for name in ("model.xml", "model.bin")}
    return Packed("openvino", files, {"weights": "model.xml", "weights_data": "model.bin", **model.settings})


def unpack_openvino(packed: Packed, model: TaskModel, task: Task) -> Any:
    import numpy as np
    import openvino

    weights = np.frombuffer(packed.files["model.bin"], dtype=np.uint8)
    return openvino.Core().read_model(packed.files["model.xml"], openvino.Tensor(weights.copy()))


def pack_tree(model: TaskModel, task: Task) -> Packed:
    """A tree as ``tree.npz``, with its text beside it."""
    value: Tree = model.value
    files = {"tree.npz": tree_bytes(value), "tree.txt": value.text().encode()}
    return Packed("trees", files, {**model.settings, "weights": "tree.npz"})


def unpack_tree(packed: Packed, model: TaskModel, task: Task) -> Tree:
    return read_tree(packed.files["tree.npz"])


def pack_rules(model: TaskModel, task: Task) -> Packed:
    """A rule list as ``rules.json``, with its text beside it."""
    value: RuleList = model.value
    files = {"rules.json": rules_bytes(value), "rules.txt": value.text().encode()}
    return Packed("rules", files, {**model.settings, "weights": "rules.json"})


def unpack_rules(packed: Packed, model: TaskModel, task: Task) -> RuleList:
    return read_rules(packed.files["rules.json"])
