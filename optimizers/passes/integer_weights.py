"""Weights as integers with scales, arithmetic in float: ONNX graphs rewritten to unpack them.

8 bit: each float weight becomes int8 and a DequantizeLinear before its use, which ONNX Runtime folds
as it loads. 4 bit: each MatMul with a constant becomes ONNX Runtime's MatMulNBits, which unpacks
block by block as it multiplies. (ONNX Runtime's own tool for the latter needs a further package for
what is these few lines of packing.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizers.formats import graphs
from optimizers.formats.errors import PassError
from optimizers.tensors import Array

#: Weight operators -> axis of the weight that holds the output channels.
_CHANNEL_AXIS = {"Conv": 0, "Gemm": 1, "MatMul": 1, "Gather": 0}

#: Smaller weights are left alone: their scales would cost what the integers save.
_LEAST_ELEMENTS = 256


def quantize_array(
    values: Array, bits: int, axes: tuple[int, ...], symmetric: bool
) -> tuple[Array, Array, Array]:
    """Integers, scale and zero point of float ``values``; ``axes`` are those that share one scale.

    ``values ~= (integers - zero) * scale``, each within half a scale. Symmetric: integers from
    ``-(2**(bits-1) - 1)``, zero point 0. Affine: ``0`` to ``2**bits - 1``, with 0.0 exactly on the grid.
    Scale and zero keep the reduced axes with size 1. All are float64 arrays of whole numbers but the scale.
    """
    exact = np.asarray(values, dtype=np.float64)
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = np.max(np.abs(exact), axis=axes, keepdims=True) / top
        scale = np.where(scale > 0, scale, 1.0)
        return np.clip(np.round(exact / scale), -top, top), scale, np.zeros_like(scale)
    top = 2**bits - 1
    low = np.minimum(exact.min(axis=axes, keepdims=True), 0.0)
    high = np.maximum(exact.max(axis=axes, keepdims=True), 0.0)
    scale = np.where(high > low, (high - low) / top, 1.0)
    zero = np.clip(np.round(-low / scale), 0, top)
    return np.clip(np.round(exact / scale) + zero, 0, top), scale, zero


@dataclass(frozen=True)
class _Use:
    """A weight where a node reads it: ``home`` is the graph that holds it, ``graph`` the node's own."""

    home: Any
    init: Any
    graph: Any
    node: Any
    position: int


def _weights(
    graph: Any, ops: Iterable[str], excluded: set[str], outer: Mapping[str, Any] | None = None
) -> list[_Use]:
    """Every use of a float weight with two or more axes, also in the bodies of If, Loop and Scan."""
    from onnx import TensorProto

    own = graphs.defined(graph)
    visible = {name: found for name, found in (outer or {}).items() if name not in own}
    visible |= {init.name: (graph, init) for init in graph.initializer}
    uses = []
    for node in graph.node:
        for body in graphs.bodies(node):
            uses += _weights(body, ops, excluded, visible)
        if node.op_type not in ops or node.name in excluded:
            continue
        position = 0 if node.op_type == "Gather" else 1
        home, init = visible.get(node.input[position] if len(node.input) > position else "", (None, None))
        if init is None or init.data_type != TensorProto.FLOAT or len(init.dims) < 2:
            continue
        if int(np.prod(init.dims)) >= _LEAST_ELEMENTS:
            uses.append(_Use(home, init, graph, node, position))
    return uses


def eight_bit(graph: Any, per_channel: bool, symmetric: bool, excluded: set[str]) -> Any:
    """``graph`` (changed in place and given back) with int8 or uint8 weights behind DequantizeLinear.

    Embeddings (Gather of a constant) count as weights too. A weight that two nodes share stays shared.
    """
    from onnx import helper, numpy_helper

    uses = _weights(graph.graph, _CHANNEL_AXIS, excluded)
    if not uses:
        raise PassError("the graph has no float weight of 256 elements or more to store as int8")
    ready: set[int] = set()
    for use in uses:
        name, axis = use.init.name, _channel_axis(use.node)
        use.node.input[use.position] = name + "_float"
        if id(use.init) in ready:
            continue
        ready.add(id(use.init))
        values = numpy_helper.to_array(use.init)
        axes = tuple(i for i in range(values.ndim) if not (per_channel and i == axis))
        integers, scale, zero = quantize_array(values, 8, axes, symmetric)
        dtype = np.int8 if symmetric else np.uint8
        shape = (-1,) if per_channel else ()
        parts: dict[str, Array] = {
            name + "_quantized": integers.astype(dtype),
            name + "_scale": scale.astype(np.float32).reshape(shape),
            name + "_zero": zero.astype(dtype).reshape(shape),
        }
        use.home.initializer.extend(numpy_helper.from_array(a, n) for n, a in parts.items())
        unpack = helper.make_node(
            "DequantizeLinear",
            list(parts),
            [name + "_float"],
            name=name + "_dequantize",
            axis=axis if per_channel else None,
        )
        use.home.node.insert(0, unpack)
    graphs.drop_unused(graph.graph, {use.init.name for use in uses})
    return graph


def _channel_axis(node: Any) -> int:
    if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
        return 0
    return _CHANNEL_AXIS[node.op_type]


def four_bit(graph: Any, block: int, symmetric: bool, excluded: set[str]) -> Any:
    """``graph`` (changed in place and given back) with 4-bit weights in its matrix products.

    A Gemm (with plain alpha and beta) becomes MatMulNBits with its bias added behind it.
    """
    from onnx import helper

    uses = _weights(graph.graph, ("MatMul", "Gemm"), excluded)
    if not uses:
        raise PassError("4 bits are for MatMul and Gemm with a constant weight; there is none")
    for use in uses:
        node, weight = use.node, _matrix(use.node, use.init)
        if weight is None:
            continue
        names = _store_blocks(use.home, use.init.name, weight, block, symmetric)
        bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else None
        product = node.output[0] if bias is None else node.output[0] + "_product"
        packed = helper.make_node(
            "MatMulNBits",
            [node.input[0], *names],
            [product],
            name=node.name + "_4bit",
            domain="com.microsoft",
            K=weight.shape[0],
            N=weight.shape[1],
            bits=4,
            block_size=block,
        )
        at = list(use.graph.node).index(node)
        if bias is not None:
            add = helper.make_node("Add", [product, bias], list(node.output), name=node.name + "_bias")
            use.graph.node.insert(at + 1, add)
        use.graph.node[at].CopyFrom(packed)
    if not any(o.domain == "com.microsoft" for o in graph.opset_import):
        graph.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    graphs.drop_unused(graph.graph, {use.init.name for use in uses})
    return graph


def _matrix(node: Any, init: Any) -> Array | None:
    """The weight as [K, N], or None for a product that MatMulNBits does not stand for."""
    from onnx import numpy_helper

    values = numpy_helper.to_array(init)
    if values.ndim != 2:
        return None
    settings = {a.name: (a.f if a.type == 1 else a.i) for a in node.attribute}
    if settings.get("alpha", 1.0) != 1.0 or settings.get("beta", 1.0) != 1.0 or settings.get("transA", 0):
        return None
    return values.T if settings.get("transB", 0) else values


def _store_blocks(graph: Any, name: str, weight: Array, block: int, symmetric: bool) -> list[str]:
    """Packed integers [N, blocks, block / 2], scales and, if affine, packed zero points as initializers."""
    from onnx import numpy_helper

    rows, columns = weight.shape
    blocks = -(-rows // block)
    padded = np.zeros((columns, blocks * block), dtype=np.float64)
    padded[:, :rows] = weight.T
    grouped = padded.reshape(columns, blocks, block)
    integers, scale, zero = quantize_array(grouped, 4, (2,), symmetric)
    if symmetric:
        integers, zero = integers + 8, zero + 8  # the kernel's zero point, where none is given, is 8
    low, high = integers[..., 0::2].astype(np.uint8), integers[..., 1::2].astype(np.uint8)
    parts = {"_4bit": low | (high << 4), "_scales": scale.astype(np.float32).reshape(columns, blocks)}
    if not symmetric:
        flat = zero.astype(np.uint8).reshape(columns, blocks)
        flat = np.pad(flat, ((0, 0), (0, blocks % 2)))
        parts["_zeros"] = flat[:, 0::2] | (flat[:, 1::2] << 4)
    existing = {init.name for init in graph.initializer}
    for suffix, array in parts.items():
        if name + suffix not in existing:
            graph.initializer.append(numpy_helper.from_array(array, name + suffix))
    return [name + suffix for suffix in parts]
