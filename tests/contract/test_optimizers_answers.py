"""Networks as their authors wrote them: structured answers, token types, another padding."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from optimizers import runner
from optimizers.artifact import ArtifactMalformed
from optimizers.formats.errors import FormError, PassError, RecipeError
from optimizers.formats.in_memory import predictor
from optimizers.passes.distill_network import DistillNetwork
from optimizers.passes.fine_tune import FineTune
from optimizers.passes.prune import Prune
from optimizers.passes.prune_channels import PruneChannels
from optimizers.passes.technique import PassSpec
from optimizers.pipeline import pipeline
from optimizers.pipeline.recipe import Latency, Recipe, Variant
from optimizers.runtimes.text import TextEncoder
from optimizers.task import Dataset, Metric, Preprocess, Task, TaskModel
from optimizers.tensors import TensorSpec
from tests.support.small_task import Branches, small_task

pytestmark = pytest.mark.slow


@dataclass
class Structured:
    """Like the outputs of the transformers library."""

    logits: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    hidden: torch.Tensor | None = None


Pair = namedtuple("Pair", "hidden logits")


class Wrapped(Branches):
    """The small network with its logits in a structure."""

    def __init__(self, structure: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.structure = structure

    def forward(self, image: torch.Tensor) -> Any:
        return self.structure(super().forward(image))


STRUCTURES: dict[str, Callable[[torch.Tensor], Any]] = {
    "dict": lambda x: {"logits": x, "hidden": x * 2},
    "dict of one": lambda x: {"out": x},
    "ordered": lambda x: OrderedDict(hidden=x * 2, logits=x),
    "list": lambda x: [x],
    "tuple": lambda x: (x,),
    "named tuple": lambda x: Pair(x * 2, x),
    "dataclass": lambda x: Structured(logits=x, hidden=x * 2),
}


def _wrapped(structure: Callable[[torch.Tensor], Any]) -> Task:
    """The small task with its trained weights behind a structure."""
    task = small_task()

    def build() -> Wrapped:
        return Wrapped(structure)

    module = build()
    module.load_state_dict(task.model.value.state_dict())
    model = replace(task.model, value=module.eval())
    return replace(task, model=model, architectures={"original": build}, digest=f"wrapped {id(structure)}")


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_a_module_may_give_its_logits_in_any_structure(
    structure: Callable[[torch.Tensor], Any], runtime: str, tmp_path: Path
) -> None:
    recipe = Recipe("m", "none:none", (Variant("a", runtime=runtime),), latency=Latency((1,), 0.01))
    made = pipeline.run(recipe, tmp_path, task=_wrapped(structure), report=False).artifacts["a"]
    rows = small_task().test.inputs
    found, plain = runner.load(made).run(rows), predictor(small_task().model, small_task())(rows)
    np.testing.assert_allclose(found["scores"], plain["scores"], atol=1e-5)
    np.testing.assert_array_equal(found["label"], plain["label"])


@pytest.mark.parametrize(
    "spec",
    [
        FineTune(epochs=1),
        Prune(importance="gradient", sparsity=0.3, epochs=1),
        PruneChannels(ratio=0.2, steps=1, epochs=0),
        DistillNetwork(architecture="original", epochs=3, learning_rate=5e-3),
    ],
    ids=lambda spec: spec.kind,
)
@pytest.mark.parametrize("name", ["dict", "dataclass"])
def test_passes_that_train_or_cut_take_structures_too(spec: PassSpec, name: str, tmp_path: Path) -> None:
    variants = (Variant("a"), Variant("b", (spec,)))
    recipe = Recipe("m", "none:none", variants, latency=Latency((1,), 0.01))
    made = pipeline.run(recipe, tmp_path, task=_wrapped(STRUCTURES[name]), report=False).artifacts["b"]
    assert made.manifest.quality["accuracy"] > 0.5


@pytest.mark.parametrize(
    ("structure", "says"),
    [
        (lambda x: {"a": x, "b": x}, r"logits \[rows, classes\], the module gives a dict of \['a', 'b'\]"),
        (lambda x: (x, x), r"a tuple of \['Tensor', 'Tensor'\]"),
        (lambda x: {"logits": [x]}, "a classifier gives logits"),
        (lambda x: None, "a NoneType"),
        (lambda x: x.missing, "does not run on the model's inputs: AttributeError"),
    ],
)
@pytest.mark.parametrize("runtime", ["onnx", "torch", "openvino"])
def test_an_answer_without_logits_is_refused_when_the_artifact_is_made(
    structure: Callable[[torch.Tensor], Any], says: str, runtime: str, tmp_path: Path
) -> None:
    recipe = Recipe("m", "none:none", (Variant("a", runtime=runtime),), latency=Latency((1,), 0.01))
    with pytest.raises(PassError, match=says) as caught:
        pipeline.run(recipe, tmp_path, task=_wrapped(structure), report=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("structure", "fits"),
    [
        (lambda x: {"second": x * 2, "first": x, "third": x}, True),
        (lambda x: Pair(x, x * 2), True),
        (lambda x: [x, x * 2], True),
        (lambda x: {"one": x, "two": x * 2}, False),
        (lambda x: [x], False),
        (lambda x: [x, [x]], False),
        (lambda x: {"first": x}, False),
    ],
)
def test_outputs_are_taken_by_name_or_by_place_and_otherwise_refused(
    structure: Callable[[torch.Tensor], Any], fits: bool
) -> None:
    class Network(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return structure(x)

    specs = tuple(TensorSpec(name, "FP32", (-1, 2)) for name in ("first", "second"))
    model = TaskModel("torch", Network(), (TensorSpec("x", "FP32", (-1, 2)),), specs)
    run = predictor(model, None)  # type: ignore[arg-type]
    x = np.ones((3, 2), dtype=np.float32)
    if fits:
        found = run({"x": x})
        np.testing.assert_array_equal(found["first"], x)
        np.testing.assert_array_equal(found["second"], x * 2)
    else:
        with pytest.raises(FormError, match=r"the model's outputs are \['first', 'second'\]"):
            run({"x": x})


# Text.

WORDS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "good": 4, "bad": 5, "very": 6}
TEXTS = np.array([b"good", b"very very bad", b"", b"good bad"], dtype=object)


def _tokenizer(path: Path, pad: str | None = None, direction: str = "right") -> Path:
    """A tokenizer of the RoBERTa kind: padding has id 1. Without ``pad`` its file does not say how to pad."""
    made = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        "<s> $A </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    if pad:
        made.enable_padding(pad_id=WORDS[pad], pad_token=pad, direction=direction, pad_type_id=7)
    made.save(str(path))
    return path


@pytest.mark.parametrize(("pad", "given", "id_"), [(None, None, 1), ("bad", None, 5), ("bad", 6, 6)])
def test_rows_are_padded_as_the_tokenizer_says(
    pad: str | None, given: int | None, id_: int, tmp_path: Path
) -> None:
    encoder = TextEncoder(_tokenizer(tmp_path / "t.json", pad), "text", 8, given)
    found = encoder.apply({"text": TEXTS[:2]})
    assert found["input_ids"].tolist() == [[0, 4, 2, id_, id_], [0, 6, 6, 5, 2]]
    assert found["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    rest = 7 if pad else 0
    assert found["token_type_ids"].tolist() == [[0, 0, 1, rest, rest], [0, 0, 0, 0, 1]]


def test_a_tokenizer_that_pads_on_the_left_does_so_here(tmp_path: Path) -> None:
    encoder = TextEncoder(_tokenizer(tmp_path / "t.json", "<pad>", "left"), "text", 8)
    found = encoder.apply({"text": TEXTS[:2]})
    assert found["input_ids"].tolist()[0] == [1, 1, 0, 4, 2]
    assert found["attention_mask"].tolist()[0] == [0, 0, 1, 1, 1]


def test_rows_without_a_token_are_padded_to_one(tmp_path: Path) -> None:
    made = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    made.save(str(tmp_path / "t.json"))
    found = TextEncoder(tmp_path / "t.json", "text", 8).apply({"text": np.array([b""], dtype=object)})
    assert found["input_ids"].tolist() == [[1]] and found["attention_mask"].tolist() == [[0]]


def _sums(*names: str, kind: int = TensorProto.INT64) -> Any:
    """A network that gives the sum of each of its inputs by row."""
    nodes: list[Any] = []
    for i, name in enumerate(names):
        nodes.append(helper.make_node("Cast", [name], [f"f{i}"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("ReduceSum", [f"f{i}", "last"], [f"s{i}"], keepdims=1))
    nodes.append(helper.make_node("Concat", [f"s{i}" for i in range(len(names))], ["sums"], axis=1))
    inputs = [helper.make_tensor_value_info(n, kind, ["rows", "tokens"]) for n in names]
    output = helper.make_tensor_value_info("sums", TensorProto.FLOAT, ["rows", len(names)])
    last = helper.make_tensor("last", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(nodes, "g", inputs, [output], [last])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _text_task(folder: Path, names: tuple[str, ...], datatype: str = "INT64") -> Task:
    tokenizer = _tokenizer(folder / "tokenizer.json")
    encoder = TextEncoder(tokenizer, "text", 8)
    specs = tuple(TensorSpec(name, datatype, (-1, -1)) for name in names)
    kind = TensorProto.INT64 if datatype == "INT64" else TensorProto.INT32
    outputs = (TensorSpec("sums", "FP32", (-1, len(names))),)
    settings = {"kind": "tokenizer", "file": "tokenizer.json", "input": "text", "max_tokens": 8}
    data = Dataset({"text": TEXTS})
    return Task(
        name="text",
        model=TaskModel("onnx", _sums(*names, kind=kind), specs, outputs),
        train=data,
        validation=data,
        test=data,
        metric=Metric("rows", lambda predict, rows: float(len(predict(rows.inputs)["sums"]))),
        fidelity=lambda ours, theirs: float(np.mean(ours["sums"] == theirs["sums"])),
        digest="text",
        preprocess=Preprocess(
            encoder.apply, (TensorSpec("text", "BYTES", (-1,)),), settings, {"tokenizer.json": tokenizer}
        ),
    )


RECIPE = Recipe(
    "text", "none:none", (Variant("a"), Variant("b", runtime="openvino")), latency=Latency((1,), 0.01)
)


@pytest.mark.parametrize(
    "names",
    [
        ("input_ids",),
        ("input_ids", "attention_mask"),
        ("input_ids", "token_type_ids", "attention_mask"),
    ],
)
def test_a_network_gets_what_it_takes_of_ids_mask_and_token_types(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    done = pipeline.run(RECIPE, tmp_path / "out", task=_text_task(tmp_path, names), report=False)
    expected = TextEncoder(tmp_path / "tokenizer.json", "text", 8).apply({"text": TEXTS})
    for made in done.artifacts.values():
        found = runner.load(made).run({"text": TEXTS})["sums"]
        np.testing.assert_array_equal(found, np.stack([expected[n].sum(axis=1) for n in names], axis=1))


def test_a_network_that_takes_what_text_does_not_give_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match="preprocessing does not fit the model: input 'position_ids' is missing"
    ):
        pipeline.run(
            RECIPE, tmp_path / "out", task=_text_task(tmp_path, ("input_ids", "position_ids")), report=False
        )
    with pytest.raises(RecipeError, match="input 'input_ids': the model takes INT32, got INT64"):
        pipeline.run(
            RECIPE, tmp_path / "out", task=_text_task(tmp_path, ("input_ids",), "INT32"), report=False
        )


def test_an_artifact_whose_preprocessing_does_not_fit_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    made = pipeline.run(RECIPE, tmp_path / "out", task=_text_task(tmp_path, ("input_ids",)), report=False)
    good = made.artifacts["a"]
    (good.path / "model.onnx").write_bytes(_sums("input_ids", "position_ids").SerializeToString())
    with pytest.raises(
        ArtifactMalformed, match=r"takes \['input_ids', 'position_ids'\].*without position_ids"
    ):
        runner.load(good)
    settings = {k: v for k, v in good.manifest.preprocess.items() if k != "max_tokens"}
    with pytest.raises(ArtifactMalformed, match=r"preprocess section lacks \['max_tokens'\]"):
        runner.load(replace(good, manifest=replace(good.manifest, preprocess=settings)))
