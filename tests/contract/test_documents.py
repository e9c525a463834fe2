"""The documents are true: links resolve, policies and recipes parse, commands run, and names exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import yaml

from optimizers import artifact
from optimizers.artifact import Manifest
from optimizers.passes import registry
from optimizers.pipeline import recipe_file
from optimizers.profile import LatencyProfile, ProfilePoint
from optimizers.tensors import TensorSpec
from router.cli.common import EXIT_CODES
from router.cli.main import main
from router.ingress import routes
from router.policy import Policy, parse
from router.policy.sections import ModelSection
from tests.support.documents import (
    DOCUMENTS,
    NOT_RUN,
    ROOT,
    Command,
    anchors,
    blocks,
    commands,
    links,
    make_targets,
    prose,
    run,
    write_inputs,
)

COMMANDS = [command for document in DOCUMENTS for command in commands(document)]
OWN_MODEL = ROOT / "docs" / "own-model.md"  # its commands run in their order, by a test of their own
LOCAL = [
    command
    for command in COMMANDS
    if not command.not_run and not command.asks_server and command.document != "docs/own-model.md"
]
MODEL: dict[str, Any] = {
    "artifacts": "artifacts/digits",
    "online": {"variants": ["float32", "int8", "tree"]},
    "batch": {"variant": "int8"},
}


def name(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_link_inside_resolves(document: Path) -> None:
    broken = []
    for link in links(document):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize(("document", "most"), [("README.md", 900), ("ARCHITECTURE.md", 1000)])
def test_a_document_is_as_short_as_its_reader_has_time(document: str, most: int) -> None:
    assert len(prose(ROOT / document).split()) <= most


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_file_that_is_named_exists(document: Path) -> None:
    text = re.sub(r"\]\([^)]*\)", "", prose(document))
    named = re.findall(r"`((?:router|workers|optimizers|tests|configs|docs)/[\w/.]*)`", text)
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    assert set(links(folder / "README.md")) == {path.name for path in folder.glob("[0-9]*.md")}


def test_the_functions_on_the_way_of_a_request_exist() -> None:
    text = prose(ROOT / "ARCHITECTURE.md")
    rows = re.findall(r"^\| `(\w[\w/]+\.py)` \| `([\w.]+)` \|", text, re.MULTILINE)
    assert 5 < len(rows) <= 10
    for path, function in rows:
        source = (ROOT / path).read_text(encoding="utf-8")
        for part in function.split("."):
            assert re.search(rf"\b(?:class|def) {part}\b", source), f"{path} has no {function}"


def test_operating_lists_every_metric() -> None:
    text = prose(ROOT / "docs" / "operating.md")
    for path in ("router/service/metrics.py", "workers/batch/metrics.py"):
        metrics = re.findall(r'"(hybrid_\w+)"', (ROOT / path).read_text(encoding="utf-8"))
        assert metrics and [metric for metric in metrics if f"`{metric}`" not in text] == []


def test_clients_lists_every_path_and_exit_code() -> None:
    text = prose(ROOT / "docs" / "clients.md")
    endings = {template.rpartition("}")[2] for template in routes.TABLE}
    assert [ending for ending in endings if ending not in text] == []
    listed = set(re.findall(r"^\| (\d+) \| ", text.partition("| exit code |")[2], re.MULTILINE))
    assert listed == set(re.findall(r"^ +(\d+) ", EXIT_CODES, re.MULTILINE))


def test_own_model_lists_every_technique() -> None:
    text = prose(OWN_MODEL)
    assert [kind for kind in registry.BUILT_IN if f"`{kind}`" not in text] == []


def policy_text(given: dict[str, Any]) -> str | None:
    """A whole policy around a part of one; None for YAML that is about something else."""
    model = {**MODEL}
    if set(given) <= set(ModelSection.model_fields):
        for key, value in given.items():
            model[key] = {**MODEL[key], **value} if isinstance(value, dict) else value
        if "online" in given and "rules" in given["online"].get("variants", ()):
            model["batch"] = {"variant": "rules"}
        return yaml.safe_dump({"models": {"digits": model}})
    if set(given) <= set(Policy.model_fields):
        # A route may ask for any tenant that the text speaks of.
        return yaml.safe_dump({"models": {"digits": model}, **given}, sort_keys=False)
    return None


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_policies_and_recipes_parse(document: Path) -> None:
    inline = re.findall(r"`((?:online|batch|redis|limits|logs|cors|tenants): \{[^`.]*\})`", prose(document))
    for text in [*blocks(document, "yaml"), *inline]:
        given = yaml.safe_load(text)
        if "variants" in given and "task" in given:
            assert recipe_file.parse(text).variants
        elif (policy := policy_text(given)) is not None:
            assert parse(policy, name(document)).models
        else:
            assert any(key.endswith("Probe") for key in given), text


def test_the_readme_shows_a_whole_policy() -> None:
    assert any(text.startswith("models:") for text in blocks(ROOT / "README.md", "yaml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands read; the variants are manifests, which is all that planning reads."""
    folder = tmp_path_factory.mktemp("documents")
    write_inputs(folder, np.zeros((3, 1, 8, 8), np.float32), None)
    for place, variant in enumerate(("float32", "int8", "tree")):
        ms = 1.0 / (place + 1)
        manifest = Manifest(
            model="digits",
            variant=variant,
            runtime="onnx",
            inputs=(TensorSpec("image", "FP32", (-1, 1, 8, 8)),),
            outputs=(TensorSpec("label", "INT64", (-1,)),),
            metric="accuracy",
            quality={"accuracy": 1.0 - place / 100, "quality_drop": place / 100},
            profile=LatencyProfile((ProfilePoint(1, ms, ms), ProfilePoint(256, 20 * ms, 20 * ms))),
            size_bytes=1,
            parameters=1,
        )
        artifact.write(folder / "artifacts" / "digits", manifest, {"weights": b"0"})
    return folder


def weighed(command: Command) -> Any:
    """A simulation takes a second or two."""
    marks = [pytest.mark.slow] if " simulate " in command.text else []
    return pytest.param(command, id=str(command), marks=marks)


@pytest.mark.parametrize("command", map(weighed, LOCAL))
def test_a_command_without_a_server_runs(
    command: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    result = run(command.text)
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_the_page_about_an_own_model_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for source in blocks(OWN_MODEL, "python"):
        exec(source, {})
    recipe, policy = blocks(OWN_MODEL, "yaml")
    Path("iris.yaml").write_text(recipe.rstrip() + "\nlatency: {batches: [1, 4], seconds: 0.05}\n")
    Path("iris-policy.yaml").write_text(policy)
    for command in commands(OWN_MODEL):
        if not command.not_run:
            result = run(command.text)
            assert result.exit_code == 0, result.output
    assert Path("artifacts/iris/report.html").exists()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.not_run], ids=str)
def test_a_command_that_is_not_run_exists(command: Command) -> None:
    words = shlex.split(command.text)
    if words[0] == "make":
        assert words[1] in make_targets()
        for value in (word.removeprefix("NAME=") for word in words if word.startswith("NAME=")):
            places = {
                "bench": f"tests/benchmarks/bench_{value}.py",
                "example": f"optimizers/examples/{value}.py",
            }
            assert (ROOT / places[words[1]]).exists()
    elif words[0] == "hybrid-router":
        parses(main, words[1:])
    elif words[0] == "export":
        switches = (ROOT / "router/serving/ray_start.py").read_text(encoding="utf-8")
        variable, _, value = words[1].partition("=")
        assert f'"{variable}": "{value}"' in switches
    else:
        paths = [word for word in words[1:] if "/" in word]
        assert all((ROOT / path).exists() for path in paths)


def parses(group: click.Group, words: list[str]) -> None:
    """The command exists, and takes these options and arguments."""
    context = click.Context(group)
    command = group.get_command(context, words[0])
    assert command is not None, words[0]
    if isinstance(command, click.Group):
        parses(command, words[1:])
    else:
        command.make_context(words[0], list(words[1:]))


def test_each_reason_for_not_running_is_needed() -> None:
    used = {command.not_run for command in COMMANDS}
    assert set(NOT_RUN) - used <= {"pip install"}
