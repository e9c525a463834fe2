"""A policy is held against the artifacts that it names before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizers import artifact
from optimizers.artifact import Manifest
from optimizers.profile import LatencyProfile, ProfilePoint
from optimizers.tensors import TensorSpec
from router import policy as policies
from router.policy.artifacts import MissingArtifact, read_manifests

POLICY = """
models:
  m: {{artifacts: {folder}, online: {{variants: [v], in_router: {in_router}}}}}
routes: [{{name: any, to: online}}]
"""


def written(folder: Path, row_ms: float) -> Path:
    manifest = Manifest(
        model="m",
        variant="v",
        runtime="onnx",
        inputs=(TensorSpec("x", "FP32", (-1,)),),
        outputs=(TensorSpec("y", "FP32", (-1,)),),
        metric="accuracy",
        quality={"accuracy": 1.0, "quality_drop": 0.0},
        profile=LatencyProfile((ProfilePoint(1, row_ms, row_ms),)),
        size_bytes=1,
        parameters=1,
        settings={"weights": "model.onnx"},
    )
    artifact.write(folder, manifest, {"model.onnx": b"any"})
    return folder


@pytest.mark.parametrize(("row_ms", "in_router"), [(0.2, "true"), (30.0, "false")])
def test_a_small_model_may_run_in_the_router(tmp_path: Path, row_ms: float, in_router: str) -> None:
    text = POLICY.format(folder=written(tmp_path, row_ms), in_router=in_router)
    assert read_manifests(policies.parse(text))["m"]["v"].profile.predict_ms(1) == row_ms


def test_one_for_which_all_others_would_wait_may_not(tmp_path: Path) -> None:
    policy = policies.parse(POLICY.format(folder=written(tmp_path, 30.0), in_router="true"))
    with pytest.raises(
        MissingArtifact, match=r"p\.yaml: models\.m: online\.in_router: variant 'v' takes 30 ms for a row"
    ):
        read_manifests(policy, "p.yaml")
