"""`serve deploy`: what the configuration file says is what Serve and the application builder take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve import Application
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call_builder
from ray.serve._private.utils import is_grpc_enabled
from ray.serve.schema import ServeDeploySchema

from router.ingress.grpc.server import add_to_server
from router.policy import PolicyError
from router.policy.reading import digest_of
from router.serving.application import build
from tests.support import every_datatype
from workers.batch.deployment import BatchWorker
from workers.execution.work_limits import WorkLimit, limit_for


@pytest.fixture
def config() -> ServeDeploySchema:
    return ServeDeploySchema.model_validate(yaml.safe_load(Path("configs/serve.yaml").read_text()))


@pytest.fixture
def policy(tmp_path: Path) -> str:
    every_datatype.write(tmp_path / "every")
    path = tmp_path / "policy.yaml"
    path.write_text(
        f"models: {{every: {{artifacts: {tmp_path / 'every'}, online: {{variants: [plain]}}}}}}\n"
        "routes: [{name: all, to: online}]\n"
    )
    return str(path)


def test_the_builder_takes_what_the_file_gives(config: ServeDeploySchema, policy: str) -> None:
    args: dict[str, Any] = {**config.applications[0].args, "policy": policy}
    assert isinstance(call_builder(build, args), Application)


def test_an_argument_that_is_not_known_is_named(policy: str) -> None:
    with pytest.raises(ValidationError, match="router_replica\n"):
        call_builder(build, {"policy": policy, "router_replica": 2})


def test_the_file_opens_the_grpc_door(config: ServeDeploySchema) -> None:
    options: Any = config.grpc_options
    assert is_grpc_enabled(options)
    assert not options.enable_reflection
    module, _, name = options.grpc_servicer_functions[0].rpartition(".")
    assert (module, name) == (add_to_server.__module__, add_to_server.__name__)


def batch_deployment(policy: str, section: str, written: str = "") -> Any:
    """What becomes of a model's ``batch`` section."""
    text = Path(policy).read_text().replace("online: {variants: [plain]}", f"batch: {section}")
    Path(policy).write_text(text.replace("to: online", "to: batch") + written)
    arguments = build({"policy": policy, "redis_url": "redis://127.0.0.1:1"})._bound_deployment.init_args
    (workers,) = [a for a in arguments if isinstance(a, dict) and "every" in a]
    return workers["every"]._bound_deployment


@pytest.mark.parametrize(("written", "hung_after_ms"), [("", None), (", hung_after: 2min", 120_000.0)])
def test_a_policy_says_when_a_batch_counts_as_hung(
    policy: str, written: str, hung_after_ms: float | None
) -> None:
    deployment = batch_deployment(policy, f"{{variant: plain{written}}}")
    assert deployment.init_kwargs["hung_after_ms"] == hung_after_ms
    limit = BatchWorker.make_settings(1000, None, hung_after_ms).limit
    expected = limit_for(3_000.0) if hung_after_ms is None else WorkLimit(120_000.0, 120_000.0)
    assert limit(3_000.0) == expected


@pytest.mark.parametrize(("written", "namespace"), [("", "hr"), ("redis: {namespace: staging}\n", "staging")])
def test_workers_and_their_scaling_use_the_policys_namespace(
    policy: str, written: str, namespace: str
) -> None:
    deployment = batch_deployment(policy, "{variant: plain, workers: {min: 0, max: 2}}", written)
    scaling: Any = deployment._deployment_config.autoscaling_config
    assert deployment.init_kwargs["namespace"] == namespace
    assert scaling.policy.policy_kwargs["namespace"] == namespace


def test_a_policy_that_changes_while_it_is_deployed_keeps_its_own_digest(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, read_text = Path(policy).read_text(), Path.read_text

    def changing(path: Path, *args: Any, **kwargs: Any) -> str:
        found = read_text(path, *args, **kwargs)
        if str(path) == policy:
            path.write_text(text.replace("name: all", "name: edited"))
        return found

    monkeypatch.setattr(Path, "read_text", changing)
    deployed, digest, *_ = build({"policy": policy})._bound_deployment.init_args
    assert deployed.routes[0].name == "all"
    assert digest == digest_of(text)


@pytest.mark.parametrize("where", ["argument", "policy"])
def test_a_url_with_a_password_is_not_deployed(policy: str, where: str) -> None:
    url, args = "redis://:correct.horse@host:1", {"policy": policy}
    if where == "argument":
        args["redis_url"] = url
    else:
        Path(policy).write_text(Path(policy).read_text() + f"redis: {{url: '{url}'}}\n")
    with pytest.raises(PolicyError, match=r"file:.*env:NAME") as refused:
        build(args)
    assert "correct.horse" not in str(refused.value)
