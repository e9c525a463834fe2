"""A torch model as a file that runs no code: the exported graph as plain JSON, weights as safetensors.

``torch.export`` traces the module; its own archive is not used, for loading it can unpickle and
evaluate text. Here a program is a list of calls to ATen operators, looked up by name in an allowed
namespace, with arguments that are numbers, text, lists and references to earlier calls.

::

    {"format": 1, "inputs": ["image"], "outputs": [["ref", 9]],
     "calls": [["aten.conv2d.default", [["ref", 0], ["weight", "0.weight"], ...], {}], ...]}

References count inputs first, then calls. Sizes that follow the batch are calls too
(``aten.sym_size.int``), so one program runs any number of rows.
"""

from __future__ import annotations

import operator
from typing import Any

import orjson

from optimizers.formats.convert import deployed, example_inputs
from optimizers.formats.in_memory import predictor
from optimizers.passes.registry import FormError, Packed, typed
from optimizers.task import Model, Task

FORMAT = 1
PROGRAM, WEIGHTS = "program.json", "program.safetensors"

#: What a program may call besides ATen operators: arithmetic on sizes, and taking one of several results.
_BUILTINS = {
    f"operator.{name}": getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "getitem", "eq", "ne", "lt", "le", "gt", "ge")
}
#: ATen operators without an effect that only check a size at run time.
_CHECKS = (
    "aten._assert_scalar.default",
    "aten._assert_async.msg",
    "aten.sym_constrain_range_for_size.default",
)


class ProgramError(ValueError):
    """A program file that is not one, or that calls what it may not."""


def pack_program(model: Model, task: Task, *, compiled: bool) -> Packed:
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


def trace(model: Model, task: Task) -> tuple[dict[str, Any], dict[str, Any]]:
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
    """The name under which :func:`_function` finds a call's target again."""
    if getattr(target, "namespace", None) == "aten":
        return str(target)
    for name, function in _BUILTINS.items():
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


def build(program: Any, weights: dict[str, Any], device: str) -> Any:
    """The module that a program describes, on ``device``. Raises :class:`ProgramError`.

    Its ``forward`` takes the inputs in order and gives a tuple of outputs.
    """
    import torch

    if not isinstance(program, dict) or program.get("format") != FORMAT:
        raise ProgramError(f"not a program of format {FORMAT}")
    try:
        root = torch.nn.Module()
        graph = torch.fx.Graph()
        nodes = [graph.placeholder(f"input_{i}") for i in range(len(program["inputs"]))]
        attributes: dict[str, Any] = {}
        for i, (name, tensor) in enumerate(weights.items()):
            root.register_buffer(f"weight_{i}", tensor.to(device))
            attributes[name] = graph.get_attr(f"weight_{i}")
        where = torch.device(device)
        for target, arguments, options in program["calls"]:
            function = _function(target)
            args = tuple(_decode(a, nodes, attributes, where) for a in arguments)
            kwargs = {str(k): _decode(v, nodes, attributes, where) for k, v in options.items()}
            nodes.append(graph.call_function(function, args, kwargs))
        graph.output(tuple(_decode(o, nodes, attributes, where) for o in program["outputs"]))
        graph.eliminate_dead_code()
        return torch.fx.GraphModule(root, graph).eval()
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, ProgramError):
            raise
        raise ProgramError(f"the program cannot be read: {error!r}") from error


def _function(target: Any) -> Any:
    import torch

    if target in _BUILTINS:
        return _BUILTINS[target]
    parts = str(target).split(".")
    if len(parts) != 3 or parts[0] != "aten" or not all(p.isidentifier() for p in parts):
        raise ProgramError(f"a program may call ATen operators and size arithmetic, not {target!r}")
    found = getattr(getattr(torch.ops.aten, parts[1]), parts[2])
    if not isinstance(found, torch._ops.OpOverload):
        raise ProgramError(f"{target!r} is no ATen operator")
    return found


def _decode(value: Any, nodes: list[Any], attributes: dict[str, Any], device: Any) -> Any:
    import torch

    if not isinstance(value, list):
        return value
    match value:
        case ["ref", int(index)] if 0 <= index < len(nodes):
            return nodes[index]
        case ["weight", str(name)]:
            return attributes[name]
        case ["list", list(items)]:
            return [_decode(v, nodes, attributes, device) for v in items]
        case ["device"]:
            return device
        case ["float", ("inf" | "-inf" | "nan") as text]:
            return float(text)
        case ["torch", str(name)]:
            found = getattr(torch, name, None)
            if isinstance(found, torch.dtype | torch.layout | torch.memory_format):
                return found
    raise ProgramError(f"no such argument: {str(value)[:80]}")
