"""Writes a torch model as a program, the file that :mod:`optimizers.runtimes.torch_program` reads.

``torch.export`` traces the module; its own archive is not used, for loading it can unpickle and
evaluate text.
"""

from __future__ import annotations

from typing import Any

import orjson

from optimizers.formats.deployed import deployed, example_inputs
from optimizers.formats.errors import FormError, typed
from optimizers.formats.in_memory import predictor
from optimizers.formats.packed import Packed
from optimizers.runtimes.torch_program import BUILTINS, FORMAT, PROGRAM, WEIGHTS
from optimizers.task import Task, TaskModel

#: ATen operators without an effect that only check a size at run time.
_CHECKS = (
    "aten._assert_scalar.default",
    "aten._assert_async.msg",
    "aten.sym_constrain_range_for_size.default",
)


def pack_program(model: TaskModel, task: Task, *, compiled: bool) -> Packed:
    """A torch-form model as ``program.json`` and ``program.safetensors`` for the torch runtime.

    Raises :class:`FormError` for another form, or for a module whose graph holds what a program cannot.
    """
    if model.form != "torch":
        raise FormError(f"the torch runtime takes a model of form 'torch', not {model.form!r}")
    program, weights = trace(model, task)
    from safetensors.torch import save

    files = {PROGRAM: orjson.dumps(program), WEIGHTS: save(weights)}
    settings = {**model.settings, "weights": WEIGHTS, "program": PROGRAM, "compile": compiled}
    return Packed("torch", files, settings)


def trace(model: TaskModel, task: Task) -> tuple[dict[str, Any], dict[str, Any]]:
    """The program of a torch-form model and its weights by name."""
    import torch

    module = deployed(model)
    batch = example_inputs(task, rows=3)
    names = [spec.name for spec in model.inputs]
    dynamic = tuple(
        {i: torch.export.Dim.AUTO for i, size in enumerate(spec.shape) if size == -1} for spec in model.inputs
    )
    arguments = tuple(torch.from_numpy(batch[name].copy()) for name in names)
    predictor(model, task)(batch)  # what is wrong with the module itself is said before it is traced
    with torch.no_grad(), typed("torch.export cannot trace the module", "name runtime: onnx for it"):
        exported = torch.export.export(module, arguments, dynamic_shapes=_nest(module, dynamic))
    return _encode(exported, names)


def _nest(module: Any, dynamic: tuple[Any, ...]) -> Any:
    """Dynamic shapes in the structure of ``forward``: a ``*args`` parameter takes them as one tuple."""
    import inspect

    kinds = [p.kind for p in inspect.signature(module.forward).parameters.values()]
    return (dynamic,) if kinds == [inspect.Parameter.VAR_POSITIONAL] else dynamic


def _encode(exported: Any, names: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    signature = exported.graph_signature
    stored = {**exported.state_dict, **exported.constants}
    sources = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    places: dict[Any, Any] = {}
    weights: dict[str, Any] = {}
    calls: list[Any] = []
    outputs: list[Any] = []
    inputs = 0
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            source = sources.get(node.name)
            if source is None:
                places[node] = ["ref", inputs]
                inputs += 1
            else:
                weights[source] = stored[source].detach().contiguous().clone()
                places[node] = ["weight", source]
        elif node.op == "call_function":
            target = _name(node.target)
            if target in _CHECKS:
                continue
            arguments = [_value(a, places) for a in node.args]
            options = {k: _value(v, places) for k, v in node.kwargs.items()}
            places[node] = ["ref", len(names) + len(calls)]
            calls.append([target, arguments, options])
        elif node.op == "output":
            outputs = [_value(a, places) for a in node.args[0]]
        else:
            raise FormError(
                f"the exported graph has a {node.op} node, {node.target}, which a program cannot hold"
            )
    if inputs != len(names):
        raise FormError(f"the module takes {inputs} tensors, its specs name {names}")
    return {"format": FORMAT, "inputs": names, "outputs": outputs, "calls": calls}, weights


def _name(target: Any) -> str:
    """The name under which a program's reader finds a call's target."""
    if getattr(target, "namespace", None) == "aten":
        return str(target)
    for name, function in BUILTINS.items():
        if target is function:
            return name
    raise FormError(f"the exported graph calls {target}, which a program may not call")


def _value(value: Any, places: dict[Any, Any]) -> Any:
    """An argument as JSON: a reference, a tagged torch value, a list, or itself."""
    import torch

    if isinstance(value, torch.fx.Node):
        return places[value]
    if isinstance(value, list | tuple):
        return ["list", [_value(v, places) for v in value]]
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return ["torch", str(value).removeprefix("torch.")]
    if isinstance(value, torch.device):
        return ["device"]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return ["float", repr(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise FormError(f"an argument of type {type(value).__name__} cannot stand in a program: {value!r}")
