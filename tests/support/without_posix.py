"""The command line where Python has nothing that only POSIX systems have, as on Windows.

``python -m tests.support.without_posix [--no-locks] ARGUMENTS...`` is ``hybrid-router ARGUMENTS...`` there.
POSIX's byte locks stand for those of Windows: they are as exclusive between processes.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import fcntl
import getpass
import importlib.abc
import logging.handlers
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import types
import uuid

#: What the standard library itself does with POSIX is settled while it is imported, as on Windows.
IMPORTED = (
    concurrent.futures.thread, getpass, logging.handlers, multiprocessing, random, subprocess, tempfile,
    threading, uuid,
)  # fmt: skip
MODULES = ("fcntl", "grp", "pwd", "resource", "termios", "syslog")
ATTRIBUTES = ("register_at_fork", "fork", "O_CLOEXEC", "pread", "pwrite", "sched_getaffinity", "geteuid")
SIGNALS = ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM")


class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _locking(fd: int, mode: int, size: int) -> None:
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, size, os.lseek(fd, 0, os.SEEK_CUR))


def _no_signals(*_: object) -> None:
    raise NotImplementedError


def become(locks: bool) -> None:
    """Take away what Windows lacks, and give it its own locks."""
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Absent())
    for module, names in ((os, ATTRIBUTES), (signal, SIGNALS)):
        for name in names:
            vars(module).pop(name, None)
    asyncio.SelectorEventLoop.add_signal_handler = _no_signals  # type: ignore[assignment]
    if locks:
        msvcrt = types.ModuleType("msvcrt")
        msvcrt.locking, msvcrt.LK_NBLCK = _locking, 2  # type: ignore[attr-defined]
        sys.modules["msvcrt"] = msvcrt


if __name__ == "__main__":
    arguments = [word for word in sys.argv[1:] if word != "--no-locks"]
    become("--no-locks" not in sys.argv)
    from router.cli.main import main

    main(arguments, prog_name="hybrid-router")
