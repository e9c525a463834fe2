"""One suite for every runtime: same answers alone and in a batch, deterministic, clear when broken.

The models are small and real: a trained network with its batch norm, packed for each runtime by the
pipeline's own packing, and a tree and rules distilled from it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from optimizers import artifact, runner
from optimizers.artifact import Artifact, ArtifactError, ArtifactMalformed
from optimizers.passes.cast import Cast
from optimizers.passes.distill_rules import DistillRules
from optimizers.passes.distill_tree import DistillTree
from optimizers.passes.quantize_dynamic import QuantizeDynamic
from optimizers.passes.quantize_static import QuantizeStatic
from optimizers.passes.quantize_weights import QuantizeWeights
from optimizers.pipeline import pipeline
from optimizers.pipeline.recipe import Latency, Recipe, Variant
from optimizers.runner import Runner, RuntimeMissing, RuntimeUnknown
from optimizers.tensors import check, concat, pack, unpack
from tests.support.small_task import small_task

VARIANTS = (
    Variant("onnx"),
    Variant("onnx_int8", (QuantizeStatic(rows=64),)),
    Variant("onnx_dynamic", (QuantizeDynamic(),)),
    Variant("onnx_weights8", (QuantizeWeights(),)),
    Variant("onnx_float16", (Cast("float16"),)),
    Variant("openvino", runtime="openvino"),
    Variant("openvino_bfloat16", (Cast(),), runtime="openvino"),
    Variant("torch", runtime="torch"),
    Variant("torch_bfloat16", (Cast(),), runtime="torch"),
    Variant("tree", (DistillTree(resampled=500),)),
    Variant("rules", (DistillRules(resampled=500),)),
)
NAMES = [v.name for v in VARIANTS]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    recipe = Recipe("quarters", "none:none", VARIANTS, latency=Latency((1, 4), 0.02))
    out = tmp_path_factory.mktemp("quarters")
    return dict(pipeline.run(recipe, out, task=small_task(), report=False).artifacts)


@pytest.fixture(params=NAMES)
def found(request: pytest.FixtureRequest, made: dict[str, Artifact]) -> Artifact:
    return artifact.read(made[request.param].path)


@pytest.fixture
def loaded(found: Artifact) -> Iterator[Runner]:
    opened = runner.load(found)
    yield opened
    opened.close()


IMAGES = small_task().test.take(17).inputs


def test_takes_and_gives_what_the_manifest_says(found: Artifact, loaded: Runner) -> None:
    assert isinstance(loaded, Runner)
    assert loaded.inputs == found.manifest.inputs and loaded.outputs == found.manifest.outputs
    assert check(loaded.run(IMAGES), loaded.outputs, "output") == 17


def test_rows_alone_equal_rows_in_a_batch_within_the_stated_tolerance(
    found: Artifact, loaded: Runner
) -> None:
    together = loaded.run(IMAGES)
    alone = concat([loaded.run({k: v[i : i + 1] for k, v in IMAGES.items()}) for i in range(17)])
    assert found.manifest.tolerance < 0.1
    np.testing.assert_allclose(alone["scores"], together["scores"], rtol=0, atol=found.manifest.tolerance)


def test_equal_input_gives_equal_output(found: Artifact, loaded: Runner) -> None:
    first, again = loaded.run(IMAGES), loaded.run(IMAGES)
    with ThreadPoolExecutor(1) as pool:  # a worker's model thread is not the one that loaded it
        elsewhere = pool.submit(loaded.run, IMAGES).result()
    for name, value in first.items():
        np.testing.assert_array_equal(again[name], value)
        np.testing.assert_array_equal(elsewhere[name], value)


def test_a_later_batch_does_not_change_an_earlier_answer(loaded: Runner) -> None:
    first = loaded.run(IMAGES)
    kept = {name: value.copy() for name, value in first.items()}
    loaded.run({k: v[::-1].copy() for k, v in IMAGES.items()})
    for name, value in kept.items():
        np.testing.assert_array_equal(first[name], value)


def test_takes_the_read_only_views_that_the_codec_gives(loaded: Runner) -> None:
    views, _ = unpack(pack(IMAGES))
    np.testing.assert_array_equal(loaded.run(views)["label"], loaded.run(IMAGES)["label"])


def test_an_artifact_answers_as_its_manifest_claims(found: Artifact, loaded: Runner) -> None:
    task = small_task()
    value = task.metric.evaluate(loaded.run, task.test)
    assert value == pytest.approx(found.manifest.quality["accuracy"])


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("tree", "rules")])
def test_weights_that_are_not_what_they_should_be_are_refused(
    made: dict[str, Artifact], name: str, tmp_path: Path
) -> None:
    """Digests are right here: what is wrong is the content, so the runtime itself must refuse it."""
    source = made[name]
    files: dict[str, bytes | Path] = {n: source.path / n for n in source.manifest.files}
    files[str(source.manifest.settings["weights"])] = b"not a model"
    broken = artifact.write(tmp_path, source.manifest, files)
    with pytest.raises(ArtifactMalformed):
        runner.load(artifact.read(broken.path))


def test_a_tampered_artifact_is_refused(found: Artifact, tmp_path: Path) -> None:
    copy = artifact.write(tmp_path, found.manifest, {n: found.path / n for n in found.manifest.files})
    weights = copy.weights()
    raw = bytearray(weights.read_bytes())
    raw[len(raw) // 2] ^= 1
    weights.write_bytes(bytes(raw))
    with pytest.raises(ArtifactError):
        artifact.read(copy.path)


def test_an_unknown_runtime_says_what_there_is(made: dict[str, Artifact]) -> None:
    odd = replace(made["onnx"], manifest=replace(made["onnx"].manifest, runtime="abacus"))
    with pytest.raises(RuntimeUnknown, match=r"abacus.*onnx"):
        runner.load(odd)


def test_a_runtime_that_is_not_installed_says_what_to_install(
    made: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "optimizers.runtimes.onnx", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeMissing, match="pip install onnxruntime"):
        runner.load(made["onnx"])


@pytest.mark.parametrize("name", ["onnx", "torch", "openvino"])
def test_a_device_that_is_not_there_is_refused(made: dict[str, Artifact], name: str) -> None:
    with pytest.raises(runner.DeviceMissing):
        runner.load(made[name], device="quantum")


def test_threads_must_be_some(made: dict[str, Artifact]) -> None:
    with pytest.raises(ValueError, match="threads"):
        runner.load(made["onnx"], threads=0)


@pytest.mark.parametrize(
    ("name", "unwanted"),
    [
        ("onnx", ("torch", "sklearn", "openvino", "pydantic", "yaml", "onnx")),
        ("onnx_int8", ("torch", "sklearn", "openvino")),
        ("tree", ("torch", "sklearn", "onnxruntime", "openvino")),
        ("openvino", ("torch", "sklearn", "onnxruntime")),
    ],
)
def test_loading_imports_no_other_runtime(
    made: dict[str, Artifact], name: str, unwanted: tuple[str, ...]
) -> None:
    code = (
        "import sys, json; from optimizers import artifact, runner, tensors;"
        "runner.load(artifact.read(sys.argv[1])); print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(made[name].path)],
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert not set(orjson.loads(done.stdout)) & set(unwanted)


def test_artifacts_hold_no_pickle(found: Artifact) -> None:
    for name in found.manifest.files:
        raw = found.file(name).read_bytes()
        assert not raw.startswith(b"\x80\x02") and b"pickle" not in raw.lower()
        if raw.startswith(b"PK"):  # a zip archive: every member must be a plain array
            with np.load(found.file(name), allow_pickle=False) as archive:
                assert all(archive[member].dtype != object for member in archive.files)
