"""A policy file becomes one frozen `Policy`, or an error that says where it is wrong and how to fix it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from optimizers.files.problems import Place
from optimizers.files.yaml import FileError, FileKind
from router.policy.document import Policy
from router.policy.secrets import may_be_secret, redacted


class PolicyError(FileError):
    """A policy that cannot be used. ``problems`` holds one line each: file, line, key, and the fix."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__([redacted(problem) for problem in problems])


def _advice(place: Place) -> str:
    is_key = place[:1] == ("tenants",) and place[2:3] == ("keys",)
    return "write the hash that 'hybrid-router key new' prints, never the key" if is_key else ""


_FILE: FileKind[Policy] = FileKind(
    "policy",
    Policy,
    "'models' and 'routes'",
    is_secret=may_be_secret,
    redact=redacted,
    advice=_advice,
)


class Reading(NamedTuple):
    """A policy and the digest of the very text that it was read from."""

    policy: Policy
    digest: str


def digest_of(text: str) -> str:
    """A short name for a policy's text: 12 hex digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def load(path: str | Path) -> Reading:
    """The policy in a file, read once. Raises `PolicyError` with file, line and key of each problem."""
    text = text_of(path)
    return Reading(parse(text, str(path)), digest_of(text))


def read(path: str | Path) -> Policy:
    """The policy in a file. Raises `PolicyError`."""
    return load(path).policy


def text_of(path: str | Path) -> str:
    """The text of a policy file. Raises `PolicyError`."""
    try:
        return _FILE.text(path)
    except FileError as error:
        raise PolicyError(error.problems) from None


def parse(text: str, source: str = "policy") -> Policy:
    """The policy in a text; ``source`` names it in errors. Raises `PolicyError`."""
    try:
        return _FILE.parse(text, source)
    except FileError as error:
        raise PolicyError(error.problems) from None
