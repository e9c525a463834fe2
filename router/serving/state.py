"""Where a server keeps what must outlive it: the data of the bundled queue server, and its log.

That is ``var/hybrid-router`` below the current folder, apart from what is built and may be deleted at any
time. Where the current folder cannot be written it is one of the user's, named after the current one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

HERE = Path("var/hybrid-router")
#: Where the data was once, among what is built.
_FORMER = Path("build/queue")


class StateError(RuntimeError):
    """There is no place to keep anything; the message says where it was tried and what to change."""


def find() -> Path:
    """The folder of a server that runs, or ran, in the current folder. Raises `StateError`."""
    there = _of_user()
    return there if there.is_dir() and not HERE.is_dir() else HERE


def make() -> Path:
    """The same folder, made where there is none. Raises `StateError`."""
    found, there = find(), _of_user()
    try:
        found.mkdir(parents=True, exist_ok=True)
        return found
    except OSError as error:
        here = error
    try:
        there.mkdir(parents=True, exist_ok=True, mode=0o700)
        return there
    except OSError as error:
        raise StateError(
            f"neither {found.absolute()} can be made ({here.strerror}) nor {there} ({error.strerror}): "
            "start in a folder that you can write, or set XDG_STATE_HOME to one"
        ) from None


def queue_data(say: Callable[[str], None]) -> Path:
    """The folder of the queue's data. What an earlier version kept among what is built is moved there first.

    Raises `StateError`, and `workers.queue.embedded.EmbeddedServerError` where a server runs on the former
    folder.
    """
    from workers.queue import embedded

    data = make() / "queue"
    if not embedded.holds_data(_FORMER):
        return data
    if embedded.holds_data(data):
        say(f"{_FORMER} holds jobs of an earlier version; to serve those too: --data {_FORMER}")
        return data
    try:
        if embedded.move(_FORMER, data):
            say(f"the queue's data was moved from {_FORMER} to {data}")
    except OSError as error:
        say(f"the queue's data stays in {_FORMER}: it cannot be moved to {data} ({error.strerror})")
        return _FORMER
    return data


def _of_user() -> Path:
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise StateError("the current folder does not exist any more: change to one that does") from None
    states = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    digest = hashlib.sha256(os.fsencode(here)).hexdigest()[:8]
    return Path(states) / "hybrid-router" / f"{here.name or 'root'}-{digest}"
