"""What a finished variant is worth and costs: quality, fidelity, size, and latency by batch size.

All of it is measured on the artifact as it will be served: loaded from disk, through its runner.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np

from optimizers.profile import LatencyProfile, fit
from optimizers.runner import Runner
from optimizers.task import Dataset, TaskModel
from optimizers.tensors import Tensors, concat

#: Rounds over all batch sizes: drift of the machine falls on each alike.
ROUNDS = 6
_LEAST_SAMPLES = 5
_MOST_SAMPLES = 4000
#: Elements of an example's longest input.
_MOST_SHOWN = 1024


def rows(data: Dataset, count: int) -> Tensors:
    """``count`` rows of a data set's inputs, repeated from the start where it is shorter."""
    index = np.arange(count) % len(data)
    return {name: np.ascontiguousarray(array[index]) for name, array in data.inputs.items()}


def example(data: Dataset) -> dict[str, Any]:
    """The first row as JSON holds it, ``{input: {"shape": [1, ...], "data": flat list}}``: a request to try.

    Empty where it is too long to read, or holds what JSON does not (NaN, bytes that are no text).
    """
    shown: dict[str, Any] = {}
    for name, array in rows(data, 1).items():
        flat = array.ravel()
        if flat.size > _MOST_SHOWN or (flat.dtype.kind == "f" and not np.isfinite(flat).all()):
            return {}
        try:
            values = [v.decode() if isinstance(v, bytes) else v for v in flat.tolist()]
        except UnicodeDecodeError:
            return {}
        shown[name] = {"shape": list(array.shape), "data": values}
    return shown


def latency(runner: Runner, data: Dataset, batches: Sequence[int], seconds: float) -> LatencyProfile:
    """Latency by batch size on real rows, in about ``seconds`` (more where a batch takes that long).

    Every batch size gets the same share of the time, in rounds, after one warm-up each; at least
    five samples. Garbage collection waits until it is done.
    """
    inputs = {n: rows(data, n) for n in batches}
    samples: dict[int, list[float]] = {n: [] for n in batches}
    for n in batches:
        for _ in range(2):
            runner.run(inputs[n])
    slice_s = seconds / ROUNDS / len(batches)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(ROUNDS):
            for n in batches:
                _time(runner, inputs[n], samples[n], slice_s, turn)
    finally:
        if collecting:
            gc.enable()
    return fit(samples)


def _time(runner: Runner, batch: Tensors, samples: list[float], slice_s: float, turn: int) -> None:
    run, clock = runner.run, perf_counter
    wanted = min(_LEAST_SAMPLES, turn + 1)
    end = clock() + slice_s
    while True:
        start = clock()
        run(batch)
        now = clock()
        samples.append((now - start) * 1e3)
        if (now >= end and len(samples) >= wanted) or len(samples) >= _MOST_SAMPLES * (turn + 1) / ROUNDS:
            return


def row_tolerance(runner: Runner, data: Dataset, count: int = 24) -> float:
    """Largest absolute difference between a row's float outputs alone and in a batch.

    Four times what was seen on ``count`` rows, and no less than one unit in the last place of the
    largest output; a label may differ only where its scores are that close.
    """
    batch = rows(data, count)
    together = runner.run(batch)
    alone = concat([runner.run({k: v[i : i + 1] for k, v in batch.items()}) for i in range(count)])
    worst = 0.0
    for name, value in together.items():
        if value.dtype.kind == "f":
            scale = float(np.max(np.abs(value))) * float(np.finfo(np.float32).eps)
            worst = max(worst, scale, 4.0 * float(np.max(np.abs(value - alone[name]))))
    return worst


def outputs(runner: Runner, data: Dataset, batch: int = 64) -> Tensors:
    """All outputs for a data set, computed in batches."""
    return concat([runner.run(part.inputs) for part in data.batches(batch)])


def count_parameters(model: TaskModel) -> tuple[int, float]:
    """How many weights a model has, and the share of them that is exactly zero.

    Passes that know better say so in ``notes`` (``parameters``, ``sparsity``).
    """
    weights = _weights(model)
    total = sum(int(w.size) for w in weights)
    zeros = sum(int(w.size) - int(np.count_nonzero(w)) for w in weights if w.ndim > 1)
    matrices = sum(int(w.size) for w in weights if w.ndim > 1)
    parameters = int(model.notes.get("parameters", total))
    return parameters, float(model.notes.get("sparsity", zeros / matrices if matrices else 0.0))


def _weights(model: TaskModel) -> list[Any]:
    if model.form == "torch":
        return [p.detach().float().numpy() for p in model.value.parameters()]
    if model.form == "onnx":
        from onnx import numpy_helper

        from optimizers.formats import graphs

        side = {
            name
            for node in graphs.nodes(model.value.graph)
            if node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
            for name in node.input[1:]
        }
        return [
            numpy_helper.to_array(init)
            for each in graphs.walk(model.value.graph)
            for init in each.initializer
            if init.name not in side and len(init.dims) > 0
        ]
    if model.form == "openvino":
        return [
            op.get_data() for op in model.value.get_ops() if op.get_type_name() == "Constant" and op.shape
        ]
    return []
