"""The pass ``quantize_static``: full integer quantization of a finished graph, with calibration.

ONNX Runtime's own quantizer makes ONNX graphs and NNCF makes OpenVINO graphs, since each runtime is
fast only on the patterns that its own tool writes.
"""

from __future__ import annotations

import fnmatch
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from optimizers.formats import graphs
from optimizers.formats.errors import PassError
from optimizers.formats.in_memory import predictor
from optimizers.passes.quantizers import check_has_integers, matching_nodes, quiet
from optimizers.passes.technique import PassSpec, Technique, one_of, within
from optimizers.runtimes import machine
from optimizers.task import PassContext, TaskModel
from optimizers.tensors import Tensors

#: Operators that ``quantize_static`` quantizes: those with weights, and those between them that
#: would otherwise force a way back to float. Softmax and ArgMax stay float: they decide.
STATIC_OPS = ("Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool", "GlobalAveragePool", "Concat", "Clip")


@dataclass(frozen=True)
class QuantizeStatic(PassSpec):
    """Full integer quantization: weights, biases and activations, scales fixed by calibration.

    ``engine`` is ``onnx`` (ONNX Runtime's quantizer, QDQ format) or ``openvino`` (NNCF). The range
    of an activation is what ``calibration`` finds over ``rows`` training rows: its least and
    greatest value, its ``percentile``, or the threshold of least relative ``entropy`` (the last two
    with ``engine: onnx``). ``exclude`` names layers that stay float (shell patterns); ``keep_float``
    keeps that many more, the worst of a sensitivity scan.
    """

    kind: ClassVar[str] = "quantize_static"
    engine: str = "onnx"
    calibration: str = "minmax"
    percentile: float = 99.99
    rows: int = 256
    batch: int = 32
    per_channel: bool = True
    symmetric_weights: bool = True
    symmetric_activations: bool = False
    transformer: bool = False
    exclude: tuple[str, ...] = ()
    keep_float: int = 0

    def __post_init__(self) -> None:
        one_of(self, "engine", "onnx", "openvino")
        one_of(self, "calibration", "minmax", "percentile", "entropy")
        within(self, "percentile", 50, 100)
        within(self, "rows", 1, 1_000_000)
        within(self, "batch", 1, 65_536)
        within(self, "keep_float", 0, 10_000)
        if self.engine == "openvino" and self.calibration != "minmax":
            raise self.refusal(
                "calibration",
                "NNCF chooses its range estimators itself; leave out calibration, or set engine: onnx",
            )


class _Reader:
    """ONNX Runtime's calibration interface over the context's training rows."""

    def __init__(self, batches: Iterator[Tensors]) -> None:
        self._batches = batches

    def get_next(self) -> Tensors | None:
        return next(self._batches, None)


def quantize_static(model: TaskModel, spec: QuantizeStatic, context: PassContext) -> TaskModel:
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
    check_has_integers(quantized)
    if not scan:
        return quantized
    ranking = [{"layer": cost.layer, "quality_cost": cost.quality_cost} for cost in scan]
    return quantized.becomes(quantized.value, sensitivity=ranking)


def _onnx_static(model: TaskModel, spec: QuantizeStatic, context: PassContext) -> TaskModel:
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    graph = graphs.named_nodes(model.value)
    with tempfile.TemporaryDirectory() as folder, quiet():
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
            nodes_to_exclude=matching_nodes(graph, spec.exclude),
            calibrate_method=methods[spec.calibration],
            extra_options={
                "ActivationSymmetric": spec.symmetric_activations,
                "WeightSymmetric": spec.symmetric_weights,
                "CalibPercentile": spec.percentile,
            },
        )
        return model.becomes(onnx.load(str(target)))


def _nncf(model: TaskModel, spec: QuantizeStatic, context: PassContext) -> TaskModel:
    import nncf

    presets = nncf.QuantizationPreset
    batches = list(context.calibration(spec.rows, spec.batch))
    with quiet():
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


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What quantizing one layer alone costs: quality lost and 1 - fidelity, on validation rows."""

    layer: str
    quality_cost: float
    infidelity: float


def sensitivity(model: TaskModel, spec: QuantizeStatic, context: PassContext) -> list[LayerCost]:
    """Every quantizable layer with a weight, the one that costs most first.

    Each is quantized alone, all else float, and judged on the validation rows by the task's metric;
    equal costs are ranked by fidelity. ONNX graphs only.
    """
    if model.form != "onnx":
        raise PassError(f"the sensitivity scan reads ONNX graphs; this model has form {model.form!r}")
    task = context.task
    graph = graphs.named_nodes(model.value)
    layers = weighted_nodes(graph, ("Conv", "Gemm", "MatMul"))
    data = task.validation
    inputs = task.network_inputs(data.inputs)

    def judge(candidate: TaskModel) -> tuple[float, Tensors]:
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


def weighted_nodes(graph: Any, ops: Sequence[str]) -> list[str]:
    """Names of the nodes of these operators whose second input is a constant."""
    constants = {init.name for init in graph.graph.initializer}
    constants |= {node.output[0] for node in graph.graph.node if node.op_type == "Constant"}
    return [
        node.name
        for node in graph.graph.node
        if node.op_type in ops and len(node.input) > 1 and node.input[1] in constants
    ]


def _saturates() -> bool:
    """Whether this processor adds products of int8 in 16 bits, which hold 7-bit weights only."""
    words = " ".join(machine.features())
    return "avx" in words and "vnni" not in words


TECHNIQUE = Technique(QuantizeStatic, ("onnx", "openvino"), quantize_static)
