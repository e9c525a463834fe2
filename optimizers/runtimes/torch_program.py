"""A torch model as a file that runs no code: the exported graph as plain JSON, weights as safetensors.

A program is a list of calls to ATen operators, looked up by name in an allowed
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

FORMAT = 1
PROGRAM, WEIGHTS = "program.json", "program.safetensors"

#: What a program may call besides ATen operators: arithmetic on sizes, and taking one of several results.
BUILTINS = {
    f"operator.{name}": getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "getitem", "eq", "ne", "lt", "le", "gt", "ge")
}


class ProgramError(ValueError):
    """A program file that is not one, or that calls what it may not."""


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

    if target in BUILTINS:
        return BUILTINS[target]
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
