"""Whatever a user hands to `hybrid-router optimize`: one error of ours, which names it, and never a trace."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from optimizers.artifact import ArtifactError
from optimizers.formats.errors import PassError, RecipeError
from optimizers.formats.forms import FORMS
from optimizers.formats.packed import Packed
from optimizers.passes.cast import Cast
from optimizers.passes.quantize_static import QuantizeStatic
from optimizers.pipeline import pipeline
from optimizers.pipeline.cli import optimize
from optimizers.pipeline.recipe import Latency, Recipe, Variant
from optimizers.task import Dataset, Metric, Preprocess, Task, TaskModel
from optimizers.tensors import TensorSpec
from tests.support.small_task import INPUTS, OUTPUTS, small_task

pytestmark = pytest.mark.slow

RECIPE = "name: m\ntask: {task}\nvariants: {{float32: {{}}}}\nlatency: {{batches: [1], seconds: 0.01}}\n"
FILES = "optimizers.formats.onnx:task"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [n for n in sys.modules if n.startswith("my_")]:
        del sys.modules[name]


def _optimize(recipe: Path, *options: str) -> Result:
    return CliRunner().invoke(optimize, [str(recipe), "--out", "out", "--quiet", *options])


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: pytest.fail("it began"))
    (folder / "file").touch()
    result = _optimize(folder / "recipe.yaml", "--out", "file/out")
    assert (result.exit_code, result.output) == (
        1,
        f"Error: --out {Path('file/out')}: cannot be written: Not a directory\n",
    )


def _refused(result: Result, *says: str) -> None:
    """It exits with 1 (2: what click itself refuses) and a message, not with an exception of another kind."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (1, 2) and "Traceback" not in result.output
    for words in says:
        assert words in " ".join(result.output.split()), result.output


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "a mapping with 'name'"),
        (b"\xff\xfe\x00rubbish", "UTF-8"),
        (b"\0\0\0", "no text at all"),
        (b"a: [", "not valid YAML"),
        (b"[" * 5000, "nested"),
        (b"name: m", "task: missing"),
        (b"name: 2024-02-31", "not valid YAML"),
        (b"!!python/object:os.system {}", "not valid YAML"),
        (RECIPE.format(task="5").encode(), "task: Input should be a valid string"),
        (RECIPE.format(task='":"').encode(), "cannot be imported"),
        (RECIPE.format(task="nowhere.at_all:task").encode(), "on PYTHONPATH"),
        (RECIPE.format(task="json:task").encode(), "'json' has no 'task'"),
        (RECIPE.format(task="sys:path").encode(), "not a function"),
        (RECIPE.format(task="json:dumps").encode(), "json:dumps raised TypeError"),
        (RECIPE.format(task="time:monotonic").encode(), "raised TypeError"),
        (RECIPE.format(task=FILES).encode(), "needs data"),
    ],
)  # fmt: skip
def test_a_recipe_that_is_none_is_refused(raw: bytes, says: str, folder: Path) -> None:
    (folder / "m.yaml").write_bytes(raw)
    _refused(_optimize(folder / "m.yaml"), says)


def test_paths_that_are_not_what_they_should_be_are_refused(folder: Path) -> None:
    (folder / "m.yaml").write_text(RECIPE.format(task=FILES))
    _refused(_optimize(folder / "missing.yaml"), "cannot read the recipe file")
    _refused(_optimize(folder), "is a directory")
    _refused(_optimize(folder / "m.yaml", "--data", "nowhere"), "nowhere/model.onnx", "cannot be read")
    (folder / "out").write_text("a file")
    _refused(_optimize(folder / "m.yaml", "--data", "."), "out")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import not_installed_anywhere", "cannot be imported (No module named 'not_installed_anywhere')"),
        ("def task(:", "cannot be imported (SyntaxError"),
        ("1 / 0", "cannot be imported (ZeroDivisionError: division by zero, at"),
        ("def task(*_): raise KeyError('column')", "my_task:task raised KeyError: 'column', at"),
        ("def task(workdir, progress): open('/nowhere/at/all')", "my_task:task raised FileNotFoundError"),
        ("def task(): pass", "my_task:task raised TypeError"),
        ("def task(workdir, progress): return None", "gave a NoneType, not an optimizers.task.Task"),
        ("from optimizers.task import Task\ndef task(*_): return Task(name='x')", "raised TypeError"),
    ],
)  # fmt: skip
def test_a_task_whose_code_fails_is_refused_with_its_place(code: str, says: str, folder: Path) -> None:
    (folder / "my_task.py").write_text(code)
    (folder / "m.yaml").write_text(RECIPE.format(task="my_task:task"))
    _refused(_optimize(folder / "m.yaml"), says)


def test_data_for_a_task_that_takes_none_says_so(folder: Path) -> None:
    (folder / "my_task.py").write_text("def task(workdir, progress): pass")
    (folder / "m.yaml").write_text(RECIPE.format(task="my_task:task"))
    _refused(_optimize(folder / "m.yaml", "--data", "."), "does it take the argument data?")


def _run(tmp_path: Path, *variants: Variant, **changes: Any) -> pipeline.Result:
    recipe = Recipe("m", "none:none", variants or (Variant("float32"),), latency=Latency((1,), 0.01))
    return pipeline.run(recipe, tmp_path, task=replace(small_task(), **changes), report=False)


DATA = small_task().test
MODEL = small_task().model
TEXT = (TensorSpec("text", "BYTES", (-1,)),)


def _fails(*_: object, **__: object) -> Any:
    raise LookupError("of the user's own")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"test": Dataset({"picture": DATA.inputs["image"]})}, "test: input 'image' is missing"),
        ({"test": Dataset({"image": DATA.inputs["image"].astype(np.float64)})}, "test: .*FP32, got FP64"),
        ({"train": Dataset({"image": DATA.inputs["image"][:, 0]})}, r"train: .*takes shape \[-1, 1, 8, 8\]"),
        ({"train": Dataset({"image": DATA.inputs["image"][:0]})}, "train: .*at least one row"),
        ({"train": Dataset({})}, "train must be"),
        ({"test": None}, "test must be"),
        ({"test": replace(DATA, targets=DATA.targets[:-1])}, "test: 255 targets for 256 rows"),
        ({"model": replace(MODEL, form="keras")}, "form 'keras'; known: torch"),
        ({"model": replace(MODEL, outputs=())}, r"outputs are \[\]"),
        ({"model": replace(MODEL, inputs=(*INPUTS, *INPUTS))}, r"inputs are \['image', 'image'\]"),
        ({"preprocess": Preprocess(_fails, INPUTS, {}, {})}, "preprocessing raised LookupError: of the"),
        ({"preprocess": Preprocess(lambda b: {}, INPUTS, {}, {})}, "not fit the model: input 'image'"),
        ({"preprocess": Preprocess(lambda b: b, TEXT, {}, {})}, "input 'text' is missing"),
    ],
)  # fmt: skip
def test_a_task_that_is_not_whole_is_refused_before_anything_is_made(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=says):
        _run(tmp_path, **changes)
    assert not list(tmp_path.glob("*/manifest.json"))


def test_what_the_users_own_judge_raises_names_the_variant(tmp_path: Path) -> None:
    for changes in ({"metric": Metric("accuracy", _fails)}, {"fidelity": _fails}):
        with pytest.raises(PassError, match=r"variants.float32: .*LookupError: of the user's own"):
            _run(tmp_path, **changes)


def test_what_a_library_raises_in_a_pass_names_variant_and_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime.quantization

    monkeypatch.setattr(onnxruntime.quantization, "quantize_static", _fails)
    with pytest.raises(PassError, match=r"variants.int8: quantize_static: .*LookupError: of the user's own"):
        _run(tmp_path, Variant("float32"), Variant("int8", (QuantizeStatic(rows=8),)))


def test_a_library_that_is_missing_skips_the_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime.transformers.float16", None)
    done = _run(tmp_path, Variant("float32"), Variant("half", (Cast("float16"),)))
    assert "onnxruntime.transformers.float16" in done.skipped["half"] and set(done.artifacts) == {"float32"}


def test_an_original_that_cannot_be_loaded_is_told_by_the_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimizers.runner import RunnerError

    for error in (
        ArtifactError("broken"),
        RunnerError("no such runtime"),
        OSError(28, "No space left on device"),
    ):

        def raising(*_: object, error: Exception = error, **__: object) -> Any:
            raise error

        monkeypatch.setattr(pipeline, "run", raising)
        (folder / "m.yaml").write_text(RECIPE.format(task=FILES))
        _refused(_optimize(folder / "m.yaml"), str(error))


def _opened(
    mutate: Callable[[bytes], bytes], made: pipeline.Result, tmp_path: Path
) -> list[Exception | None]:
    """What loading each artifact raises where its weights are ``mutate``d and the manifest fits them."""
    from optimizers import artifact, runner

    found: list[Exception | None] = []
    for name, good in made.artifacts.items():
        files: dict[str, bytes | Path] = {n: good.path / n for n in good.manifest.files}
        main = str(good.manifest.settings["weights"])
        files[main] = mutate((good.path / main).read_bytes())
        spoilt = artifact.write(tmp_path / name, good.manifest, files)
        try:
            runner.load(spoilt).close()
            found.append(None)
        except Exception as error:
            found.append(error)
    return found


def test_damaged_weights_raise_an_error_of_ours_whatever_was_damaged(tmp_path: Path) -> None:
    from optimizers.passes.distill_rules import DistillRules
    from optimizers.passes.distill_tree import DistillTree

    variants = (
        Variant("float32"),
        Variant("torch", runtime="torch"),
        Variant("openvino", runtime="openvino"),
        Variant("tree", (DistillTree(resampled=0),)),
        Variant("rules", (DistillRules(resampled=0),)),
    )
    made = _run(tmp_path / "good", *variants)
    rng = np.random.default_rng(0)
    refused = 0
    for turn in range(40):
        share, flipped = float(rng.random()), int(rng.integers(1, 40))

        def mutate(raw: bytes, share: float = share, flipped: int = flipped, turn: int = turn) -> bytes:
            if turn % 2:
                return raw[: int(len(raw) * share)]
            changed = bytearray(raw)
            for place in np.random.default_rng(turn).integers(len(raw), size=flipped):
                changed[place] ^= 0xFF
            return bytes(changed)

        for error in _opened(mutate, made, tmp_path / "spoilt"):
            assert error is None or isinstance(error, ArtifactError), repr(error)
            refused += error is not None
    assert refused > 60


def test_outputs_that_a_variant_lacks_are_named(tmp_path: Path) -> None:
    model = replace(MODEL, head="", outputs=OUTPUTS)
    with pytest.raises(PassError, match=r"gives a Tensor, the model's outputs are \['label', 'scores'\]"):
        _run(tmp_path, model=model)


@pytest.mark.parametrize(
    ("variant", "says"),
    [
        (Variant("b", runtime="trees"), "variants.b: runtime: 'trees' does not run a model of form 'torch'"),
        (Variant("b", (QuantizeStatic(exclude=("x",)),)), "variants.b: quantize_static: exclude: no layer"),
    ],
)
def test_errors_of_a_variant_begin_with_its_name(variant: Variant, says: str, tmp_path: Path) -> None:
    with pytest.raises(PassError) as caught:
        _run(tmp_path, Variant("float32"), variant)
    assert str(caught.value).startswith(says)


def test_a_packed_model_that_its_runtime_refuses_names_the_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rubbish(model: TaskModel, task: Task) -> Packed:
        return Packed("onnx", {"model.onnx": b"rubbish"}, {"weights": "model.onnx"})

    monkeypatch.setitem(FORMS, "onnx", replace(FORMS["onnx"], pack=rubbish))
    with pytest.raises(PassError, match=r"^variants.float32: its runtime does not take it: .*cannot load it"):
        _run(tmp_path)
