"""The wheel, installed and used in a folder that is no checkout: everything that a command needs is in it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from optimizers.examples.digits import test_split as real_images
from tests.support.installation import PACKAGES, ROOT, copy_sources
from workers.ports import free_port

SDK = """
import sys
import numpy as np, optimizers, router, workers
for package in (router, workers, optimizers):
    assert package.__file__.startswith(sys.prefix), package.__file__
with router.Client(sys.argv[1]) as client:
    print(client.submit("digits", np.load(sys.argv[2]), budget="10min").result().outputs["label"].tolist())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_sources(folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-index"]
    subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)], check=True, timeout=300
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bin_(wheel: Path) -> Path:
    """The ``bin`` folder of an environment with the wheel, and with the dependencies of this one."""
    folder = wheel.parent / "venv"
    venv.create(folder)
    python = folder / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # A path in a .pth file is searched; .pth files there, such as this checkout's own, are not read.
    site = folder / "lib" / version / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    install = ["install", "--quiet", "--no-index", "--no-deps", "--ignore-installed", str(wheel)]
    subprocess.run([*pip, *install], check=True, timeout=300)
    return folder / "bin"


def environment() -> dict[str, str]:
    """Without anything of this interpreter's."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "HYBRID_"))}


def run(folder: Path, *command: str | Path) -> str:
    """What a command says that is run in ``folder`` and ends well."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_of_the_packages_and_all_examples(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    files = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    examples = {
        f"optimizers/examples/{path.relative_to(ROOT)}"
        for path in (ROOT / "configs").rglob("*")
        if path.is_file()
    }
    assert len(files) > 150 and len(examples) > 7
    assert not (files | examples) - held


def test_the_examples_are_written_where_one_is_and_never_over_what_is_there(
    bin_: Path, tmp_path: Path
) -> None:
    program = bin_ / "hybrid-router"
    assert "configs/recipes/digits.yaml" in run(tmp_path, program, "examples")
    policy = tmp_path / "configs/digits.yaml"
    assert policy.read_bytes() == (ROOT / "configs/digits.yaml").read_bytes()
    policy.write_text("mine")
    assert "configs/digits.yaml is there already" in run(tmp_path, program, "examples")
    assert policy.read_text() == "mine"


def test_the_demo_and_what_it_leaves_running_work_in_any_folder(
    bin_: Path, artifacts: Path, tmp_path: Path
) -> None:
    program, port = bin_ / "hybrid-router", free_port()
    # Also where a proxy is set, which must not be asked for this machine: nothing listens there.
    around = environment() | {"PYTHONUNBUFFERED": "1", "http_proxy": f"http://127.0.0.1:{free_port()}"}
    for name in ("no_proxy", "NO_PROXY"):
        around.pop(name, None)
    # Made already, as by a run before: training them once more shows nothing here.
    shutil.copytree(artifacts, tmp_path / "artifacts/digits")
    demo = subprocess.Popen(
        [str(program), "demo", "--seconds", "5", "--rate", "20", "--port", str(port), "--keep"],
        cwd=tmp_path,
        env=around,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    started: list[psutil.Process] = []
    try:
        lines: list[str] = []
        assert demo.stdout
        for line in demo.stdout:
            lines.append(line.strip())
            if line.startswith("Ctrl-C"):
                break
        started = psutil.Process(demo.pid).children(recursive=True)
        assert any("every answer is its variant's" in line for line in lines), lines
        assert (tmp_path / "build/demo/run.png").is_file()
        url, image = f"http://127.0.0.1:{port}", tmp_path / "image.npy"
        assert next(line.split()[-1] for line in lines if line.startswith("endpoint")) == url
        assert httpx.get(f"{url}/v2/health/ready", trust_env=False).status_code == 200
        the_lines_to_copy_work([line for line in lines if line.startswith("curl ")], tmp_path, around)
        images, labels = real_images()
        np.save(image, images[:1])
        answer = run(
            tmp_path, program, "infer", "digits", f"@{image}", "--budget", "5s", "--json", "--url", url
        )
        assert json.loads(answer)["outputs"]["label"] == labels[:1].tolist()
        assert json.loads(run(tmp_path, bin_ / "python", "-c", SDK, url, image)) == labels[:1].tolist()
    finally:
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 0
    assert started and not psutil.wait_procs(started, timeout=15)[1]


def the_lines_to_copy_work(curls: list[str], folder: Path, around: dict[str, str]) -> None:
    answers = [
        subprocess.run(
            ["bash", "-c", curl], cwd=folder, env=around, capture_output=True, text=True, timeout=60
        ).stdout
        for curl in curls
    ]
    assert len(answers) == 3
    assert json.loads(answers[0])["outputs"][0]["name"] == "label"
    assert "202 Accepted" in answers[1]
    assert len(json.loads(answers[2])["outputs"][0]["data"]) == 3


def test_a_recipe_is_run_in_any_folder(bin_: Path, artifacts: Path, tmp_path: Path) -> None:
    shutil.copytree(artifacts, tmp_path / "artifacts/digits")
    run(tmp_path, bin_ / "hybrid-router", "examples")
    recipe, out = "configs/recipes/digits.yaml", "artifacts/digits"
    said = run(tmp_path, bin_ / "hybrid-router", "optimize", recipe, "--out", out, "--only", "tree")
    assert "report: artifacts/digits/report.html" in said
