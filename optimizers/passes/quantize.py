"""Quantization of finished graphs: full (static), partial (dynamic, weights only), layer by layer.

ONNX Runtime's own quantizer makes ONNX graphs and NNCF makes OpenVINO graphs, since each runtime is
fast only on the patterns that its own tool writes. Training with rounding is in
:mod:`optimizers.passes.quantize_aware`, half-width floats in :mod:`optimizers.passes.cast`.

The elementary map is :func:`fake_quantize`.
"""

from __future__ import annotations

import fnmatch
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from optimizers.formats import graphs
from optimizers.formats.in_memory import predictor
from optimizers.passes.registry import PassError
from optimizers.pipeline import machine
from optimizers.pipeline.recipe import QuantizeDynamic, QuantizeStatic, QuantizeWeights
from optimizers.task import Context, Model
from optimizers.tensors import Array, Tensors

#: Operators that ``quantize_static`` quantizes: those with weights, and those between them that
#: would otherwise force a way back to float. Softmax and ArgMax stay float: they decide.
STATIC_OPS = ("Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool", "GlobalAveragePool", "Concat", "Clip")


def fake_quantize(values: ArrayLike, scale: float) -> Array:
    """``Q(x) = round(x * scale) / scale``: the nearest value on a grid of step ``1 / scale``.

    Halves round to even. No element moves by more than ``1 / (2 * scale)``, in exact arithmetic.

    >>> fake_quantize([1., 2., 3., 4.], scale=2).tolist()
    [1.0, 2.0, 3.0, 4.0]
    >>> fake_quantize([0.2, 0.3, 0.75], scale=2).tolist()
    [0.0, 0.5, 1.0]

    Raises ``ValueError`` unless ``scale`` is finite and above 0.
    """
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be finite and above 0, got {scale}")
    array = np.asarray(values)
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    return np.asarray(np.round(array * scale) / scale, dtype=array.dtype)


class _Reader:
    """ONNX Runtime's calibration interface over the context's training rows."""

    def __init__(self, batches: Iterator[Tensors]) -> None:
        self._batches = batches

    def get_next(self) -> Tensors | None:
        return next(self._batches, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantizers log and print advice and progress of their own; progress is ours to tell."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(before)


def static(model: Model, spec: QuantizeStatic, context: Context) -> Model:
    """Weights, biases and activations as 8-bit integers, scales fixed on training rows."""
    scan: list[LayerCost] = []
    if spec.keep_float:
        scan = sensitivity(model, replace(spec, keep_float=0), context)
        worst = tuple(cost.layer for cost in scan[: spec.keep_float])
        context.progress(f"kept float: {', '.join(worst)}")
        spec = replace(spec, exclude=(*spec.exclude, *worst))
    quantized = (
        _nncf(model, spec, context) if spec.engine == "openvino" else _onnx_static(model, spec, context)
    )
    _has_integers(quantized)
    if not scan:
        return quantized
    ranking = [{"layer": cost.layer, "quality_cost": cost.quality_cost} for cost in scan]
    return quantized.becomes(quantized.value, sensitivity=ranking)


def _onnx_static(model: Model, spec: QuantizeStatic, context: Context) -> Model:
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    graph = named_nodes(model.value)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        target = Path(folder) / "quantized.onnx"
        quantize_static(
            graph,
            str(target),
            _Reader(context.calibration(spec.rows, spec.batch)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(STATIC_OPS),
            per_channel=spec.per_channel,
            activation_type=QuantType.QInt8 if spec.symmetric_activations else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=_saturates(),
            nodes_to_exclude=_matching(graph, spec.exclude),
            calibrate_method=methods[spec.calibration],
            extra_options={
                "ActivationSymmetric": spec.symmetric_activations,
                "WeightSymmetric": spec.symmetric_weights,
                "CalibPercentile": spec.percentile,
            },
        )
        return model.becomes(onnx.load(str(target)))


def _nncf(model: Model, spec: QuantizeStatic, context: Context) -> Model:
    import nncf

    presets = nncf.QuantizationPreset
    batches = list(context.calibration(spec.rows, spec.batch))
    with _quiet():
        nncf.set_log_level(logging.ERROR)
        quantized = nncf.quantize(
            model.value.clone(),
            nncf.Dataset(batches),
            preset=presets.PERFORMANCE if spec.symmetric_activations else presets.MIXED,
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER if spec.transformer else None,
            ignored_scope=nncf.IgnoredScope(
                patterns=[fnmatch.translate(p) for p in spec.exclude], validate=False
            ),
        )
    return model.becomes(quantized)


def dynamic(model: Model, spec: QuantizeDynamic, context: Context) -> Model:
    """int8 weights where they are constants; activations get their scale batch by batch.

    ONNX Runtime's quantizer first splits every Gemm into a MatMul and an Add.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = named_nodes(model.value)
    excluded = _matching(graph, spec.exclude)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        target = Path(folder) / "quantized.onnx"
        quantize_dynamic(
            graph,
            str(target),
            op_types_to_quantize=list(spec.ops),
            per_channel=spec.per_channel,
            reduce_range=spec.reduce_range,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[
                *excluded,
                *(f"{name}_MatMul" for name in excluded),
            ],  # of a Gemm that was split
            extra_options={"MatMulConstBOnly": True, "EnableSubgraph": True},
        )
        quantized = model.becomes(onnx.load(str(target)))
    _has_integers(quantized)
    return quantized


def weights_only(model: Model, spec: QuantizeWeights, context: Context) -> Model:
    """Integer weights, float arithmetic."""
    from optimizers.passes import weight_only

    graph = named_nodes(model.value)
    excluded = set(_matching(graph, spec.exclude))
    if spec.bits == 4:
        return model.becomes(weight_only.four_bit(graph, spec.block, spec.symmetric, excluded))
    packed = weight_only.eight_bit(graph, spec.per_channel, spec.symmetric, excluded)
    # ONNX Runtime would otherwise unpack the weights anew in every run.
    return replace(model.becomes(packed), settings={**model.settings, "fold_weights": True})


def _has_integers(model: Model) -> None:
    """Raise :class:`PassError` where the quantizer left everything float, so that nothing changed."""
    if model.form == "openvino":
        kinds = {op.get_type_name() for op in model.value.get_ops()}
    else:
        kinds = {node.op_type for node in graphs.nodes(model.value.graph)}
    if not any("Quantize" in kind or kind.endswith("Integer") for kind in kinds):
        raise PassError(
            "nothing was quantized: no operator that it takes has a constant weight and is not excluded. "
            "Where they stand in the bodies of If, Loop or Scan, use quantize_dynamic or quantize_weights"
        )


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What quantizing one layer alone costs: quality lost and 1 - fidelity, on validation rows."""

    layer: str
    quality_cost: float
    infidelity: float


def sensitivity(model: Model, spec: QuantizeStatic, context: Context) -> list[LayerCost]:
    """Every quantizable layer with a weight, the one that costs most first.

    Each is quantized alone, all else float, and judged on the validation rows by the task's metric;
    equal costs are ranked by fidelity. ONNX graphs only.
    """
    if model.form != "onnx":
        raise PassError(f"the sensitivity scan reads ONNX graphs; this model has form {model.form!r}")
    task = context.task
    graph = named_nodes(model.value)
    layers = weighted_nodes(graph, ("Conv", "Gemm", "MatMul"))
    data = task.validation
    inputs = task.network_inputs(data.inputs)

    def judge(candidate: Model) -> tuple[float, Tensors]:
        run = predictor(candidate, task, context.threads)
        return task.metric.evaluate(lambda batch: run(task.network_inputs(batch)), data), run(inputs)

    base_quality, base_outputs = judge(model)
    costs = []
    for layer in layers:
        others = tuple(node.name for node in graphs.nodes(graph.graph) if node.name != layer)
        alone = _onnx_static(model, replace(spec, exclude=others, engine="onnx"), context)
        quality, outputs = judge(alone)
        cost = LayerCost(layer, base_quality - quality, 1.0 - task.fidelity(outputs, base_outputs))
        costs.append(cost)
        context.progress(f"sensitivity: {layer} costs {cost.quality_cost:.4f}")
    return sorted(costs, key=lambda c: (c.quality_cost, c.infidelity), reverse=True)


def named_nodes(graph: Any) -> Any:
    """A copy of an ONNX model in which every node has a name of its own, so that it can be excluded.

    Those in the bodies of If, Loop and Scan too.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    seen: set[str] = set()
    for i, node in enumerate(graphs.nodes(copy.graph)):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{i}"
        seen.add(node.name)
    return copy


def weighted_nodes(graph: Any, ops: Sequence[str]) -> list[str]:
    """Names of the nodes of these operators whose second input is a constant."""
    constants = {init.name for init in graph.graph.initializer}
    constants |= {node.output[0] for node in graph.graph.node if node.op_type == "Constant"}
    return [
        node.name
        for node in graph.graph.node
        if node.op_type in ops and len(node.input) > 1 and node.input[1] in constants
    ]


def _matching(graph: Any, patterns: Sequence[str]) -> list[str]:
    """Nodes whose name matches a pattern. Raises :class:`PassError` for a pattern that none does."""
    names = [node.name for node in graphs.nodes(graph.graph)]
    found: set[str] = set()
    for pattern in patterns:
        hits = [n for n in names if n == pattern] or fnmatch.filter(names, pattern)
        if not hits:
            raise PassError(
                f"exclude: no layer is named like {pattern!r}; layers: {', '.join(names[:40])}"
                + (" ..." if len(names) > 40 else "")
            )
        found.update(hits)
    return sorted(found)


def _saturates() -> bool:
    """Whether this processor adds products of int8 in 16 bits, which hold 7-bit weights only."""
    words = " ".join(machine.features())
    return "avx" in words and "vnni" not in words
