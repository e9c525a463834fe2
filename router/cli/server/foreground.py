"""A server in the foreground of a terminal: what a person reads, what goes to the log, and how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO

import click

from optimizers.files.logs import rotate


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """End the process here if Ray hangs: its exit handlers would keep it for another minute."""
    code = 0
    try:
        yield
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
        raise
    finally:
        cluster = sys.modules.get("router.serving.ray_start")
        if cluster is not None and cluster.hangs():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


class Console:
    """Where a person reads, while everything else that prints goes to a log file."""

    def __init__(self, stream: IO[str], log: Path) -> None:
        self.stream, self.log = stream, log

    def say(self, text: str) -> None:
        """To the person, and with its time to the log."""
        print(text, file=self.stream, flush=True)
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[Console]:
    """Send the output of this process and of those it starts to ``log``; give the terminal back at the end.

    Ray and its children write to the inherited descriptors, so the descriptors themselves are moved. The log
    goes on after what earlier runs left there; a long one begins anew, and that before it is kept beside it.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        rotate(log)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise click.ClickException(
            f"the log {log} cannot be written ({error.strerror}): start in a folder that you can write"
        ) from None
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
    try:
        yield Console(stream, log)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        stream.close()
        for number, descriptor in zip((1, 2), saved, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """The first SIGINT or SIGTERM raises KeyboardInterrupt in the main thread, a second ends the process."""

    def stop(number: int, frame: FrameType | None) -> None:
        next_interrupt_ends_at_once()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def next_interrupt_ends_at_once() -> None:
    """From here on the clean-up runs to its end, unless it is interrupted too.

    By the kernel, since a handler of Python's waits for library code that never looks. A shell shows 130.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def fail(error: Exception, console: Console) -> None:
    """End with one plain message; the trace of anything unforeseen goes to the log."""
    import traceback

    from router.policy import PolicyError
    from router.serving import state
    from router.serving.local import ServerError
    from router.serving.ray_start import ClusterError
    from workers.queue.contract import QueueError
    from workers.queue.embedded import EmbeddedServerError

    traceback.print_exception(error)
    known = PolicyError | ClusterError | ServerError | QueueError | EmbeddedServerError | state.StateError
    text = (
        str(error)
        if isinstance(error, known)
        else f"{type(error).__name__}: {error}; the trace is in {console.log}"
    )
    console.say(f"hybrid-router: {text}")
    raise SystemExit(2 if isinstance(error, PolicyError) else 1)
