"""Conversion and storage: verified on real rows, without pickle, and refused where it does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from optimizers.formats import serialization, tensorrt, torch_program
from optimizers.formats.convert import ConversionError, torch_to_onnx, verify
from optimizers.formats.deployed import deployed
from optimizers.formats.errors import FormError, NotAvailable, PassError
from optimizers.formats.forms import convert
from optimizers.formats.in_memory import predictor
from optimizers.formats.onnx import from_onnx
from optimizers.formats.sklearn import from_sklearn
from optimizers.formats.torch_program import trace
from optimizers.passes.cast import Cast, cast
from optimizers.passes.import_onnx import ImportOnnx, import_onnx
from optimizers.passes.quantize_aware import QuantizeAware
from optimizers.passes.quantize_aware import quantize_aware as quantize_aware
from optimizers.runtimes.torch_program import ProgramError, build
from tests.support.small_task import Branches, context, quality, small_task


def test_the_onnx_graph_takes_any_batch_and_answers_as_torch_does() -> None:
    task = small_task()
    model = torch_to_onnx(task.model, task)
    for rows in (1, 3, 40):
        inputs = task.test.take(rows).inputs
        ours, theirs = predictor(model, task)(inputs), predictor(task.model, task)(inputs)
        np.testing.assert_allclose(ours["scores"], theirs["scores"], atol=1e-5)
        np.testing.assert_array_equal(ours["label"], theirs["label"])


def test_a_conversion_that_answers_otherwise_is_refused() -> None:
    task = small_task()
    model = torch_to_onnx(task.model, task)
    for init in model.value.graph.initializer:
        if "head" in init.name:
            init.raw_data = bytes(len(init.raw_data))
    with pytest.raises(ConversionError, match="differ"):
        verify(task.model, model, task)


def test_there_is_no_way_back_from_onnx_to_torch() -> None:
    task = small_task()
    with pytest.raises(FormError, match="torch -> onnx"):
        convert(replace(task.model, form="onnx"), "torch", task)


def test_weights_are_stored_and_read_back() -> None:
    task = small_task()
    packed = serialization.pack_torch(task.model, task)
    value = serialization.unpack_torch(packed, task.model, task)
    for name, tensor in task.model.value.state_dict().items():
        torch.testing.assert_close(value.state_dict()[name], tensor)


def test_weights_of_other_shapes_reshape_the_architecture() -> None:
    task = small_task()
    narrow = Branches(8).eval()
    packed = serialization.pack_torch(replace(task.model, value=narrow), task)
    value = serialization.unpack_torch(packed, task.model, task)
    x = torch.from_numpy(task.test.take(4).inputs["image"])
    torch.testing.assert_close(value(x), narrow(x))
    assert value.stem.out_channels == 8 and value.norm.num_features == 8


def test_an_architecture_that_the_task_lacks_is_refused() -> None:
    task = small_task()
    packed = serialization.pack_torch(task.model, task)
    with pytest.raises(FormError, match=r"'huge'.*'original'"):
        serialization.unpack_torch(packed, replace(task.model, architecture="huge"), task)


def test_a_program_answers_as_its_module_at_any_batch() -> None:
    task = small_task()
    text, weights = trace(task.model, task)
    module = build(text, weights, "cpu")
    for rows in (1, 5, 33):
        x = torch.from_numpy(task.test.take(rows).inputs["image"])
        with torch.inference_mode():
            torch.testing.assert_close(module(x), deployed(task.model)(x))


@pytest.mark.parametrize(
    "call",
    [
        ["os.system", ["echo"], {}],
        ["aten.__class__.__init__", [], {}],
        ["aten.relu", [["ref", 0]], {}],
        ["prim.print.default", [], {}],
        ["operator.attrgetter", ["x"], {}],
        ["aten.nothing_of_this_name.default", [], {}],
        ["aten.relu.default", [["ref", 7]], {}],
        ["aten.relu.default", [["weight", "nope"]], {}],
        ["aten.relu.default", [["torch", "load"]], {}],
        ["aten.relu.default", [["float", "__import__('os')"]], {}],
        "aten.relu.default",
    ],
)
def test_a_program_may_call_only_what_it_may(call: Any) -> None:
    text = {"format": 1, "inputs": ["x"], "outputs": [["ref", 0]], "calls": [call]}
    with pytest.raises(ProgramError):
        build(text, {}, "cpu")


@pytest.mark.parametrize("text", [None, [], {}, {"format": 2}, {"format": 1}])
def test_what_is_no_program_is_refused(text: Any) -> None:
    with pytest.raises(ProgramError):
        build(text, {}, "cpu")


def test_only_a_torch_model_becomes_a_program() -> None:
    task = small_task()
    with pytest.raises(FormError, match="'onnx'"):
        torch_program.pack_program(torch_to_onnx(task.model, task), task, compiled=False)


def test_bfloat16_halves_the_weights_and_still_gives_float32() -> None:
    task = small_task()
    half = cast(task.model, Cast(), replace(context(task), runtime="torch"))
    assert all(p.dtype == torch.bfloat16 for p in half.value.parameters())
    assert task.model.value.stem.weight.dtype == torch.float32
    assert predictor(half, task)(task.test.inputs)["scores"].dtype == np.float32
    assert quality(half, task) > quality(task.model, task) - 0.05
    packed = serialization.pack_torch(half, task)
    assert serialization.unpack_torch(packed, half, task).stem.weight.dtype == torch.bfloat16


def test_bfloat16_is_not_for_onnx_runtime() -> None:
    task = small_task()
    with pytest.raises(PassError, match="runtime: torch"):
        cast(task.model, Cast(), context(task))


def test_learning_with_rounding_keeps_more_than_rounding_alone() -> None:
    task = small_task()
    spec = QuantizeAware(epochs=2, learning_rate=2e-3, weight_bits=2, activation_bits=8)
    learned = quantize_aware(task.model, spec, context(task))
    assert type(learned.value.stem) is torch.nn.Conv2d  # nothing of the rounding is left behind
    assert _with_two_bit_weights(learned) > _with_two_bit_weights(task.model)


def _with_two_bit_weights(model: Any) -> float:
    import copy

    value = copy.deepcopy(model.value)
    with torch.no_grad():
        for layer in value.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                scale = layer.weight.abs().flatten(1).amax(dim=1).clamp(min=1e-8)
                scale = scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
                layer.weight.copy_((layer.weight / scale).round().clamp(-1, 1) * scale)
    return quality(replace(model, value=value), small_task())


def test_a_module_without_layers_cannot_learn_with_rounding() -> None:
    task = small_task()
    with pytest.raises(PassError, match="no convolution"):
        quantize_aware(replace(task.model, value=torch.nn.ReLU()), QuantizeAware(), context(task))


def test_an_onnx_file_made_elsewhere_is_a_variant(tmp_path: Path) -> None:
    task = small_task()
    graph = torch_to_onnx(task.model, task).value
    graph.graph.input[0].name = "serving_default_image:0"
    for node in graph.graph.node:
        node.input[:] = ["serving_default_image:0" if n == "image" else n for n in node.input]
    path = tmp_path / "elsewhere.onnx"
    path.write_bytes(graph.SerializeToString())
    found = import_onnx(task.model, ImportOnnx(str(path)), context(task))
    assert found.form == "onnx" and found.inputs == task.model.inputs
    assert quality(found, task) == quality(task.model, task)


def test_an_onnx_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    def file(shape: list[Any]) -> Path:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
        path = tmp_path / "m.onnx"
        path.write_bytes(helper.make_model(graph, ir_version=8).SerializeToString())
        return path

    with pytest.raises(PassError, match="dynamic batch axis"):
        from_onnx(file([1, 4]))
    with pytest.raises(PassError, match="the original's are"):
        import_onnx(small_task().model, ImportOnnx(str(file(["n", 4]))), context(small_task()))
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    with pytest.raises(PassError, match="not a valid ONNX"):
        from_onnx(tmp_path / "bad.onnx")


def test_a_scikit_learn_estimator_becomes_onnx() -> None:
    from sklearn.linear_model import LogisticRegression

    task = small_task()
    table = task.train.inputs["image"].reshape(len(task.train), -1)
    fitted = LogisticRegression(max_iter=50).fit(table, task.train.targets)
    model = from_sklearn(fitted, 64)
    data = {"features": table}
    flat = replace(task, model=model, train=replace(task.train, inputs=data))
    converted = convert(model, "onnx", flat)
    ours, theirs = predictor(converted, flat)(data), predictor(model, flat)(data)
    np.testing.assert_array_equal(ours["label"], theirs["label"])
    np.testing.assert_allclose(ours["scores"], theirs["scores"], atol=1e-5)
    assert np.array_equal(theirs["label"], fitted.predict(table))


def test_tensorrt_says_that_it_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(NotAvailable, match="tensorrt is not installed"):
        tensorrt.require()
