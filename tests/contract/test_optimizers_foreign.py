"""ONNX files and scikit-learn models as others make them: taken, or refused by one sentence that helps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from sklearn.cluster import KMeans
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    GradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
)
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Perceptron,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.multioutput import MultiOutputClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from optimizers import runner
from optimizers.formats.errors import PassError, RecipeError
from optimizers.formats.forms import convert
from optimizers.formats.in_memory import predictor
from optimizers.formats.onnx import from_onnx, task
from optimizers.formats.onnx_slim import slim
from optimizers.formats.sklearn import from_sklearn
from optimizers.passes.cast import Cast
from optimizers.passes.import_onnx import ImportOnnx, import_onnx
from optimizers.pipeline import pipeline
from optimizers.pipeline.recipe import Latency, Recipe, Variant
from optimizers.task import Dataset, Metric, Task, TaskModel
from tests.support.small_task import context, small_task

pytestmark = pytest.mark.slow

ROWS, NUMBERS = load_iris(return_X_y=True)
ROWS = ROWS.astype(np.float32)
NAMES = np.array(["setosa", "versicolor", "virginica"])[NUMBERS]


def _sklearn_task(model: TaskModel, targets: Any = None) -> Task:
    data = Dataset({model.inputs[0].name: ROWS}, targets)
    return Task(
        name="iris",
        model=model,
        train=data,
        validation=data,
        test=data,
        metric=Metric("rows", lambda predict, rows: float(len(predict(rows.inputs)[model.outputs[0].name]))),
        fidelity=lambda ours, theirs: 1.0,
        digest="iris",
    )


def _folder(path: Path, model: onnx.ModelProto, targets: Any, rows: Any = ROWS) -> Path:
    path.mkdir(exist_ok=True)
    (path / "model.onnx").write_bytes(model.SerializeToString())
    for name in ("train", "validation", "test"):
        np.savez(path / f"{name}.npz", **{model.graph.input[0].name: rows, "target": targets})
    return path


@pytest.mark.parametrize("targets", [NUMBERS, NAMES], ids=["numbers", "names"])
def test_a_classifier_as_skl2onnx_writes_it_by_default_is_taken(targets: Any, tmp_path: Path) -> None:
    fitted = LogisticRegression(max_iter=200).fit(ROWS, targets)
    written = to_onnx(fitted, ROWS[:1], target_opset=17)
    assert written.graph.output[1].type.WhichOneof("value") == "sequence_type"  # ZipMap: no tensor
    taken = task(tmp_path, data=_folder(tmp_path / "iris", written, targets))
    assert taken.class_names == tuple(str(c) for c in fitted.classes_)
    variants = (Variant("a"), Variant("half", (Cast("float16"),)))
    recipe = Recipe("iris", "none:none", variants, latency=Latency((1, 4), 0.01))
    done = pipeline.run(recipe, tmp_path / "out", task=taken, report=False).artifacts
    assert done["half"].manifest.fidelity > 0.98
    made = done["a"]
    assert made.manifest.quality["accuracy"] == pytest.approx(fitted.score(ROWS, targets))
    assert made.manifest.fidelity == 1.0
    answers = runner.load(made).run({"X": ROWS})
    label, scores = (answers[spec.name] for spec in made.manifest.outputs)
    assert label.tolist() == fitted.predict(ROWS).tolist()
    np.testing.assert_allclose(scores, fitted.predict_proba(ROWS), atol=1e-5)
    assert made.manifest.notes["class_names"] == [str(c) for c in fitted.classes_]


@pytest.mark.parametrize("estimator", [MLPClassifier(max_iter=5), StackingClassifier([("a", GaussianNB())])])
def test_probabilities_are_called_so_whatever_the_converter_called_them(
    estimator: Any, tmp_path: Path
) -> None:
    written = to_onnx(estimator.fit(ROWS, NUMBERS), ROWS[:1], target_opset={"": 17, "ai.onnx.ml": 3})
    model = from_onnx(_save(written, tmp_path))
    assert [spec.name for spec in model.outputs] == ["output_label", "probabilities"]
    found = predictor(model, None)({"X": ROWS})["probabilities"]  # type: ignore[arg-type]
    np.testing.assert_allclose(found, estimator.predict_proba(ROWS), atol=1e-5)


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(max_iter=200),
        make_pipeline(StandardScaler(), LogisticRegression()),
        RandomForestClassifier(5, random_state=0),
        GradientBoostingClassifier(n_estimators=3),
        LinearSVC(),
        SVC(),
        RidgeClassifier(),
        SGDClassifier(random_state=0),
        Perceptron(),
        RandomForestRegressor(3, random_state=0),
        LinearRegression(),
        KMeans(3, n_init=1, random_state=0),
    ],
    ids=lambda e: type(e).__name__,
)
def test_estimators_with_and_without_probabilities_become_onnx(estimator: Any) -> None:
    model = from_sklearn(estimator.fit(ROWS, NUMBERS), 4)
    assert ("scores" in {s.name for s in model.outputs}) == hasattr(estimator, "predict_proba")
    taken = _sklearn_task(model)
    converted = convert(model, "onnx", taken)
    ours, theirs = (
        predictor(converted, taken)({"features": ROWS}),
        predictor(model, taken)({"features": ROWS}),
    )
    assert set(ours) == set(theirs) == {s.name for s in model.outputs}
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-3, rtol=1e-3)


def test_a_regressor_of_several_values_gives_them_all() -> None:
    fitted = LinearRegression().fit(ROWS, np.stack([NUMBERS, -NUMBERS], axis=1))
    model = from_sklearn(fitted, 4)
    assert model.outputs[0].shape == (-1, 2)
    converted = convert(model, "onnx", _sklearn_task(model))
    found = predictor(converted, _sklearn_task(model))({"features": ROWS})["value"]
    np.testing.assert_allclose(found, fitted.predict(ROWS), atol=1e-4)


@pytest.mark.parametrize(
    ("estimator", "says"),
    [
        (LogisticRegression(), "LogisticRegression does not predict rows of 4 features: NotFittedError"),
        (LogisticRegression().fit(ROWS[:, :2], NUMBERS), "expecting 2 features"),
        (PCA(2).fit(ROWS), "PCA does not predict.*give a fitted classifier or regressor"),
        (LogisticRegression(max_iter=200).fit(ROWS, NAMES), "fit it on class numbers"),
        (
            MultiOutputClassifier(RandomForestClassifier(2)).fit(ROWS, np.stack([NUMBERS, NUMBERS], axis=1)),
            "several labels per row",
        ),
        ("no estimator", "str does not predict"),
    ],
)
def test_an_estimator_that_cannot_be_taken_says_why(estimator: Any, says: str) -> None:
    with pytest.raises(PassError, match=says):
        from_sklearn(estimator, 4)


# ONNX files that others write.


def _value(name: str, shape: Sequence[Any] | None = ("rows", 4), kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def _model(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: Sequence[str] = (), **options: Any
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.eye(4, dtype=np.float32) * 2, name) for name in weights]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    opset = helper.make_opsetid("", options.get("opset", 17))
    return helper.make_model(graph, opset_imports=[opset], ir_version=options.get("ir", 8))


def _relu(x: Any = None, y: Any = None, **options: Any) -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    kind = options.get("kind", TensorProto.FLOAT)
    return _model(nodes, [x or _value("x", kind=kind)], [y or _value("y", kind=kind)], **options)


def _save(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _weights_among_the_inputs() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    declared = [_value("w", (4, 4)), _value("x"), _value("unused", (4, 4))]
    return _model(nodes, declared, [_value("y")], ["w", "unused"], ir=3)


def _same_node_names() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], name="a"),
        helper.make_node("Relu", ["h"], ["y"], name="a"),
    ]
    return _model(nodes, [_value("x")], [_value("y")])


def _names_with_slashes() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Relu", ["serving/x:0"], ["/net/h"], name="/net/Relu"),
        helper.make_node("Identity", ["/net/h"], ["out/y:0"], name="/net/out"),
    ]
    return _model(nodes, [_value("serving/x:0")], [_value("out/y:0")])


def _shadow() -> onnx.ModelProto:
    """A body has a weight of its own with the name of one outside."""
    own = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    then = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"])], "then", [], [_value("t")], [own]
    )
    other = helper.make_graph([helper.make_node("MatMul", ["x", "v"], ["e"])], "else", [], [_value("e")])
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Cast", ["top"], ["some"], to=TensorProto.BOOL),
        helper.make_node("If", ["some"], ["h"], then_branch=then, else_branch=other),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    return _model(nodes, [_value("x")], [_value("y")], ["w", "v"])


def _unused_input() -> onnx.ModelProto:
    return _model([helper.make_node("Relu", ["x"], ["y"])], [_value("x"), _value("u")], [_value("y")])


def _layer_in_a_function() -> onnx.ModelProto:
    """A layer as newer exporters write it: a function of the file's own, called by its name."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    layer = [helper.make_node("MatMul", ["a", "b"], ["m"]), helper.make_node("Relu", ["m"], ["o"])]
    model = _model(
        [helper.make_node("Layer", ["x", "w"], ["y"], domain="own")], [_value("x")], [_value("y")], ["w"]
    )
    model.functions.append(helper.make_function("own", "Layer", ["a", "b"], ["o"], layer, opsets[:1]))
    model.opset_import.append(opsets[1])
    return model


ODD: dict[str, tuple[Callable[[], onnx.ModelProto], list[str], int]] = {
    "plain": (_relu, ["x"], 1),
    "no shape": (lambda: _relu(y=_value("y", None)), ["x"], 1),
    "float64": (lambda: _relu(kind=TensorProto.DOUBLE), ["x"], 1),
    "weights are inputs": (_weights_among_the_inputs, ["x"], 2),
    "same node names": (_same_node_names, ["x"], 1),
    "slashes": (_names_with_slashes, ["serving/x:0"], 1),
    "unused input": (_unused_input, ["x", "u"], 1),
    "shadowed name": (_shadow, ["x"], 2),
    "function": (_layer_in_a_function, ["x"], 2),
}


@pytest.mark.parametrize(("make", "inputs", "factor"), ODD.values(), ids=ODD)
def test_an_odd_but_valid_onnx_file_is_taken(
    make: Callable[[], onnx.ModelProto], inputs: list[str], factor: int, tmp_path: Path
) -> None:
    model = from_onnx(_save(make(), tmp_path))
    assert [s.name for s in model.inputs] == inputs and model.outputs[0].shape == (-1, 4)
    rows = {s.name: ROWS.astype(s.dtype) for s in model.inputs}
    taken = replace(_sklearn_task(model), **{n: Dataset(rows) for n in ("train", "validation", "test")})
    variants = (Variant("onnx"), Variant("openvino", runtime="openvino"))
    recipe = Recipe("odd", "none:none", variants, latency=Latency((1,), 0.01))
    for made in pipeline.run(recipe, tmp_path / "out", task=taken, report=False).artifacts.values():
        found = runner.load(made).run(rows)
        np.testing.assert_allclose(found[model.outputs[0].name], ROWS * factor, rtol=1e-5)


def _sequence() -> onnx.ModelProto:
    output = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    return _model([helper.make_node("SequenceConstruct", ["x"], ["y"])], [_value("x")], [output])


def _external() -> onnx.ModelProto:
    model = _model([helper.make_node("MatMul", ["x", "w"], ["y"])], [_value("x")], [_value("y")], ["w"])
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return model


def _external_inside() -> onnx.ModelProto:
    """The weight in another file stands in the body of an If."""
    model = _shadow()
    bodies = [a.g for node in model.graph.node for a in node.attribute if a.name == "then_branch"]
    bodies[0].initializer[0].CopyFrom(_external().graph.initializer[0])
    return model


def _same_output_twice() -> onnx.ModelProto:
    return _model([helper.make_node("Relu", ["x"], ["y"])], [_value("x")], [_value("y"), _value("y")])


def _no_output() -> onnx.ModelProto:
    return _model([helper.make_node("Relu", ["x"], ["y"])], [_value("x")], [])


def _operator_of_others() -> onnx.ModelProto:
    node = helper.make_node("Odd", ["x"], ["y"], domain="my.own")
    model = _model([node], [_value("x")], [_value("y")])
    model.opset_import.append(helper.make_opsetid("my.own", 1))
    return model


NEWER = onnx.defs.onnx_opset_version() + 1
REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "fixed batch": (lambda: _relu(_value("x", (1, 4)), _value("y", (1, 4))), "dynamic batch axis"),
    "scalar": (lambda: _relu(_value("x", ()), _value("y", ())), "first axis must be free"),
    "newer opset": (lambda: _relu(opset=NEWER), rf"does not run it \(opset ai.onnx {NEWER}\).*older opset"),
    "newer format": (lambda: _relu(ir=99), "not a valid ONNX file.*ir_version 99"),
    "bfloat16": (lambda: _relu(kind=TensorProto.BFLOAT16), "BFLOAT16.*Cast"),
    "input without shape": (lambda: _relu(x=_value("x", None)), "Field 'shape'"),
    "sequence": (_sequence, "'y' is no tensor but a sequence.*zipmap"),
    "external": (_external, "weights are in other files.*onnx.save"),
    "external in a body": (_external_inside, "weights are in other files"),
    "output twice": (_same_output_twice, "each with its own name"),
    "no output": (_no_output, r"outputs are \[\]"),
    "unknown operator": (_operator_of_others, "does not run it.*my.own"),
    "nothing": (onnx.ModelProto, "not a valid ONNX file"),
}


@pytest.mark.parametrize(("make", "says"), REFUSED.values(), ids=REFUSED)
def test_an_onnx_file_that_cannot_be_taken_says_why(
    make: Callable[[], onnx.ModelProto], says: str, tmp_path: Path
) -> None:
    path = _save(make(), tmp_path)
    with pytest.raises(PassError, match=says) as caught:
        from_onnx(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_onnx_file_at_all_is_refused(tmp_path: Path) -> None:
    good = _save(_relu(), tmp_path).read_bytes()
    path = tmp_path / "bad.onnx"
    for raw in (
        b"",
        b"nonsense",
        b"\0" * 100,
        b"PK\x03\x04",
        good[: len(good) // 2],
        good[:-1],
        b"\xff" * 999,
    ):
        path.write_bytes(raw)
        with pytest.raises(PassError, match=r"bad\.onnx"):
            from_onnx(path)
    for missing in (tmp_path / "nothing.onnx", tmp_path, Path("bad\0name")):
        with pytest.raises(PassError, match="cannot be read"):
            from_onnx(missing)


def test_a_model_from_elsewhere_may_call_its_inner_tensors_like_our_inputs(tmp_path: Path) -> None:
    model = _names_with_slashes()
    for node in model.graph.node:
        node.input[:] = ["image" if n == "/net/h" else n for n in node.input]
        node.output[:] = ["image" if n == "/net/h" else n for n in node.output]
    ours = from_onnx(_save(_names_with_slashes(), tmp_path))
    ours = replace(ours, inputs=(replace(ours.inputs[0], name="image"),))
    found = import_onnx(ours, ImportOnnx(str(_save(model, tmp_path))), context(small_task()))
    run = predictor(found, None)  # type: ignore[arg-type]
    np.testing.assert_array_equal(run({"image": ROWS})["out/y:0"], ROWS)


def test_layers_in_functions_are_where_passes_find_them(tmp_path: Path) -> None:
    model = from_onnx(_save(_layer_in_a_function(), tmp_path))
    assert [node.op_type for node in model.value.graph.node] == ["MatMul", "Relu"]


# Folders of data files.


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda p: p.write_bytes(b""), "train.npz: needs the arrays"),
        (lambda p: p.write_bytes(b"nonsense"), "train.npz: needs the arrays"),
        (lambda p: p.write_bytes(p.read_bytes()[:200]), "train.npz: needs the arrays"),
        (lambda p: p.write_bytes(p.read_bytes()[:-30]), "train.npz: needs the arrays"),
        (lambda p: p.unlink(), "train.npz: needs the arrays"),
        (lambda p: np.save(p.open("wb"), ROWS), "made with np.save"),
        (lambda p: np.savez(p, X=ROWS), "'target' is missing"),
        (lambda p: np.savez(p, target=NUMBERS), "'X' is missing"),
        (lambda p: np.savez(p, X=ROWS, target=np.array([{}], dtype=object)), "without pickled objects"),
        (lambda p: np.savez(p, X=ROWS[:, :2], target=NUMBERS), r"takes shape \[-1, 4\]"),
        (lambda p: np.savez(p, X=ROWS[:0], target=NUMBERS[:0]), "at least one row"),
        (lambda p: np.savez(p, X=ROWS, target=NUMBERS[:-1]), "150 class numbers"),
        (lambda p: np.savez(p, X=ROWS, target=NAMES), "150 class numbers"),
        (lambda p: np.savez(p, X=ROWS, target=np.eye(150)), "150 class numbers"),
        (lambda p: np.savez(p, X=NAMES[:, None], target=NUMBERS), "needs the arrays"),
    ],
)
def test_a_data_file_that_is_not_what_it_should_be_says_so(
    spoil: Callable[[Path], Any], says: str, tmp_path: Path
) -> None:
    fitted = LogisticRegression(max_iter=200).fit(ROWS, NUMBERS)
    folder = _folder(tmp_path / "iris", to_onnx(fitted, ROWS[:1], target_opset=17), NUMBERS)
    spoil(folder / "train.npz")
    with pytest.raises(RecipeError, match=says):
        task(tmp_path, data=folder)


def test_a_model_without_a_class_among_its_outputs_says_so(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "m", _relu(), NUMBERS)
    with pytest.raises(RecipeError, match="to take for the class"):
        task(tmp_path, data=folder)


def test_weights_that_nothing_reads_go_with_their_place_among_the_inputs() -> None:
    small = slim(_weights_among_the_inputs())
    assert [value.name for value in small.graph.input] == ["w", "x"]
    assert len(small.graph.initializer) == 1
