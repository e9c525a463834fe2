"""The queue's verbs as server-side scripts: ``lua/<verb>.lua`` behind a shared prelude, called by digest.

A verb's first line declares its flags (Redis 7): those that free memory or answer questions are
allowed when the server is out of memory, those that take in work are not.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

from workers.queue.limits import IN_SCRIPTS

VERBS = (
    *("submit", "claim", "promote", "extend", "settle", "cancel", "state", "watch", "peek", "stats"),
    *("sleep", "reap", "dead", "show_dead", "retry_dead", "drop_dead", "layout"),
)


@dataclass(frozen=True, slots=True)
class Script:
    """One verb's full text and the digest by which the server knows it."""

    name: str
    text: str
    digest: str


def load_scripts(clock: str | None = None) -> dict[str, Script]:
    """All verbs. ``clock`` replaces ``lua/now.lua``, so that tests can step the queue's time."""
    folder = resources.files("workers.queue.redis") / "lua"
    now = clock or (folder / "now.lua").read_text(encoding="utf-8")
    numbers = "\n".join(f"local {name} = {value}" for name, value in IN_SCRIPTS.items())
    shared = (folder / "lib.lua").read_text(encoding="utf-8")
    scripts = {}
    for name in VERBS:
        flags, _, body = (folder / f"{name}.lua").read_text(encoding="utf-8").partition("\n")
        text = "\n".join((flags, now, numbers, shared, body))
        digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        scripts[name] = Script(name, text, digest)
    return scripts
