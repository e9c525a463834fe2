"""Names in an ONNX graph and in the graphs inside it: the bodies of If, Loop and Scan.

An inner graph sees the names of the graphs around it, unless it defines one of the same name itself.
Whatever asks which weights are used, or gives a name to something, goes through here: a walk over
the nodes of the outermost graph alone misses what only a body reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from optimizers.formats.errors import FormError


def bodies(node: Any) -> list[Any]:
    """The graphs that a node holds in its attributes; most hold none."""
    return [g for a in node.attribute for g in ((a.g,) if a.HasField("g") else a.graphs)]


def walk(graph: Any) -> Iterator[Any]:
    """``graph`` and every graph inside it, outer ones first."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from walk(body)


def nodes(graph: Any) -> Iterator[Any]:
    """The nodes of ``graph`` and of every graph inside it."""
    return (node for each in walk(graph) for node in each.node)


def defined(graph: Any) -> set[str]:
    """The names that ``graph`` itself gives to something: inputs, weights, results of its nodes."""
    found = {value.name for value in graph.input} | {init.name for init in graph.initializer}
    found |= {sparse.values.name for sparse in graph.sparse_initializer}
    return (found | made(graph)) - {""}


def made(graph: Any) -> set[str]:
    """The names of what the nodes of ``graph`` itself give."""
    return {name for node in graph.node for name in node.output}


def used(graph: Any) -> set[str]:
    """The names that ``graph`` or a graph inside it reads or gives out.

    A name that a body defines anew counts as used outside too: a weight is rather kept than lost.
    """
    found = {name for node in nodes(graph) for name in node.input}
    return found | {value.name for each in walk(graph) for value in each.output}


def drop_unused(graph: Any, names: Iterable[str] | None = None) -> None:
    """Remove the weights that nothing reads, in bodies too; only those in ``names`` where it is given."""
    for each in walk(graph):
        gone = {init.name for init in each.initializer} - used(each)
        if names is not None:
            gone &= set(names)
        for field in (each.initializer, each.input) if each is graph else (each.initializer,):
            for i in reversed([i for i, item in enumerate(field) if item.name in gone]):
                del field[i]


def rename(graph: Any, names: Mapping[str, str]) -> None:
    """Give what ``graph`` defines other names, wherever they occur.

    Something else that already has a wanted name gets another one.
    """
    wanted = set(names.values())
    taken = wanted | {name for each in walk(graph) for name in defined(each) | used(each)}

    def own(each: Any) -> dict[str, str]:
        given = dict(names) if each is graph else {}
        for name in (defined(each) & wanted) - set(given):
            given[name] = free(f"{name}_inner", taken)
        return given

    rewrite(graph, own)


def free(name: str, taken: set[str]) -> str:
    """``name``, or ``name`` with a number where it is taken; taken from now on."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found


def rewrite(
    graph: Any, own: Callable[[Any], Mapping[str, str]], outer: Mapping[str, str] | None = None
) -> None:
    """Rename in ``graph`` and in all graphs inside it: ``own`` says the new names of what each defines."""
    here = defined(graph)
    names = {old: new for old, new in (outer or {}).items() if old not in here}
    names.update(own(graph))
    tensors = [*graph.initializer, *graph.input, *graph.output, *graph.value_info]
    tensors += [part for sparse in graph.sparse_initializer for part in (sparse.values, sparse.indices)]
    for tensor in tensors:
        tensor.name = names.get(tensor.name, tensor.name)
    for note in graph.quantization_annotation:
        note.tensor_name = names.get(note.tensor_name, note.tensor_name)
        for entry in note.quant_parameter_tensor_names:
            entry.value = names.get(entry.value, entry.value)
    for node in graph.node:
        for field in (node.input, node.output):
            for i, name in enumerate(field):
                field[i] = names.get(name, name)
        for body in bodies(node):
            rewrite(body, own, names)


def rename_outputs(graph: Any, names: list[str]) -> None:
    """Give the outputs of an ONNX model other names, in order, wherever they occur."""
    if len(names) != len(graph.graph.output):
        raise FormError(
            f"the graph has {len(graph.graph.output)} outputs "
            f"({', '.join(o.name for o in graph.graph.output)}), the model's specs name {len(names)}"
        )
    _rename(graph, graph.graph.output, names)


def rename_inputs(graph: Any, names: list[str]) -> None:
    """Give the inputs of an ONNX model other names, in order, wherever they occur."""
    weights = {init.name for init in graph.graph.initializer}
    _rename(graph, [value for value in graph.graph.input if value.name not in weights], names)


def _rename(graph: Any, values: Any, names: list[str]) -> None:
    rename(graph.graph, {value.name: name for value, name in zip(values, names, strict=True)})


def strip_zipmap(model: Any) -> tuple[str, ...]:
    """Outputs that ZipMap makes mappings of become ``probabilities`` FP32; gives the classes' names.

    skl2onnx ends a classifier with ZipMap unless told not to: one mapping per row from class to
    probability, which no tensor protocol carries.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    names: tuple[str, ...] = ()
    makers = {node.output[0]: node for node in graph.node if node.op_type == "ZipMap"}
    for value in graph.output:
        node = makers.get(value.name)
        if node is None:
            continue
        classes = next(
            iter(a.strings or a.ints for a in node.attribute if a.name.startswith("classlabels_")), ()
        )
        names = tuple(c.decode() if isinstance(c, bytes) else str(c) for c in classes)
        tensor, shape = node.input[0], ["rows", len(names) or None]
        value.CopyFrom(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, shape))
        graph.node.remove(node)
        if tensor in made(graph) and "probabilities" not in {out.name for out in graph.output}:
            rename(graph, {tensor: "probabilities"})
    return names


def named_nodes(graph: Any) -> Any:
    """A copy of an ONNX model in which every node has a name of its own, so that it can be excluded.

    Those in the bodies of If, Loop and Scan too.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    seen: set[str] = set()
    for i, node in enumerate(nodes(copy.graph)):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{i}"
        seen.add(node.name)
    return copy
