"""The documents, as what can be checked of them: links, headings, code blocks, and the commands in these."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result

from router.cli.main import main

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_PROGRAMS = ("hybrid-router", "make", "curl", "serve", "eval", "export", "pip", ".venv/bin/")
#: Commands of ours that ask a running server.
_ASKS = ("infer", "submit", "result", "status", "bench", "dead")

#: What is not run, by how it begins, and why. That it exists is checked all the same.
NOT_RUN = {
    "make": "minutes of work, or the tests themselves; the target must be in the Makefile",
    "pip install": "changes the machine; tests/acceptance/test_installed.py installs",
    "serve deploy": "needs a Ray cluster; tests/acceptance/test_joined.py has one",
    "export": "for another shell; router/serving/ray_start.py sets the same variables",
    ".venv/bin/": "the test runner; the path that it is given must exist",
    "hybrid-router serve": "does not end; every acceptance test starts one",
    "hybrid-router optimize configs/": "trains for minutes; the acceptance tests make these artifacts",
    "hybrid-router dead show": "needs a dead letter; tests/contract/test_cli_dead.py has some",
    "hybrid-router dead drop": "needs a dead letter; tests/contract/test_cli_dead.py has some",
}


@dataclass(frozen=True)
class Command:
    """One command line of a document."""

    document: str
    text: str

    @property
    def not_run(self) -> str | None:
        """The key of `NOT_RUN` that it begins with."""
        return next((start for start in NOT_RUN if self.text.startswith(start)), None)

    @property
    def asks_server(self) -> bool:
        words = self.text.split()
        ours = words[0] == "hybrid-router" and words[1] in _ASKS
        return ours or words[0] == "curl" or "live.json" in words or "predicted.json" in words

    def __str__(self) -> str:
        return f"{self.document}: {self.text}"


def prose(path: Path) -> str:
    """A document without its code blocks."""
    return _FENCE.sub("", path.read_text(encoding="utf-8"))


def blocks(path: Path, *languages: str) -> Iterator[str]:
    """The code blocks in one of the languages; ``""`` is a block that names none."""
    for language, text in _FENCE.findall(path.read_text(encoding="utf-8")):
        if language in languages:
            yield text


def commands(path: Path) -> list[Command]:
    """Each command line of a document, without its comment; pictures in blocks are no commands."""
    lines = (line for text in blocks(path, "", "sh", "bash") for line in text.splitlines())
    name = str(path.relative_to(ROOT))
    return [Command(name, re.sub(r"\s+#.*$", "", line)) for line in lines if line.startswith(_PROGRAMS)]


def links(path: Path) -> list[str]:
    return _LINK.findall(prose(path))


def anchors(path: Path) -> set[str]:
    """The anchor of each heading, as GitHub and the built site make them."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(prose(path)))
    return {heading.strip().replace(" ", "-") for heading in plain}


def run(command: str, **environment: str) -> Result:
    """A command line of ours in this process, in the current folder, with ``<`` and ``>`` as in a shell."""
    if match := re.fullmatch(r'eval "\$\((.+)\)"', command):
        command = match[1]
    words = shlex.split(command)
    given = target = None
    if "<" in words:
        place = words.index("<")
        given = Path(words[place + 1]).read_text(encoding="utf-8")
        del words[place : place + 2]
    if ">" in words:
        place = words.index(">")
        target = Path(words[place + 1])
        del words[place : place + 2]
    assert words[0] == "hybrid-router", command
    result = CliRunner().invoke(main, words[1:], input=given, env=environment)
    if target is not None:
        target.write_text(result.stdout, encoding="utf-8")
    return result


def write_inputs(folder: Path, images: np.ndarray, artifacts: Path | None) -> None:
    """What the commands of the documents read, in ``folder``; the digits' variants by a link."""
    shutil.copytree(ROOT / "configs", folder / "configs", dirs_exist_ok=True)
    policy = (folder / "configs" / "digits.yaml").read_text(encoding="utf-8")
    (folder / "proposed.yaml").write_text(policy, encoding="utf-8")
    tenants = "\ntenants: {acme: {weight: 3}, zoo: {}}\n"  # for a policy of the reader's own
    (folder / "my.yaml").write_text(policy + tenants, encoding="utf-8")
    if artifacts is not None:
        (folder / "artifacts").mkdir()
        (folder / "artifacts" / "digits").symlink_to(artifacts)
    np.save(folder / "images.npy", images)
    np.save(folder / "image.npy", images[0])
    np.savetxt(folder / "rows.csv", images.reshape(len(images), -1), delimiter=",")
    data = images[:1].ravel().tolist()
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, *images.shape[1:]], "data": data}
    (folder / "digit.json").write_text(str({"inputs": [tensor]}).replace("'", '"'), encoding="utf-8")
    for name in ("yesterday.csv", "day.csv"):
        times = "".join(f"{0.05 * i:.2f}\n" for i in range(40))
        (folder / name).write_text(f"timestamp\n{times}", encoding="utf-8")
    (folder / "key.txt").write_text("a-key-from-elsewhere\n", encoding="utf-8")


def make_targets() -> set[str]:
    """The targets of the Makefile."""
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
