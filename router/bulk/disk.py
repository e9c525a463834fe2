"""The few things that bulk work does to files, in one place, so that tests can stop the world at any."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from router.bulk.errors import BulkError

_BLOCK_BYTES = 1 << 20
#: Windows would make two bytes of each line's end.
_BINARY = getattr(os, "O_BINARY", 0)
#: Windows locks bytes, also against their owner's other handles: take one that is never written.
_LOCKED_BYTE = 1 << 40


class AppendFile:
    """A file that grows. What was appended outlives this process, what was synced the machine's fall too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _BINARY, 0o644)
        self.size = os.fstat(self._fd).st_size

    def append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self.size += len(data)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)
        self.size = size

    def sync(self) -> None:
        os.fsync(self._fd)

    def lock(self) -> bool:
        """Keep other processes from locking it while this one lives. False: one has it.

        Raises BulkError where this Python cannot lock a file.
        """
        if not _locked(self._fd):
            return False
        # One that another process has just finished with and removed is nobody's any more.
        return os.path.exists(self.path) and os.path.samestat(os.stat(self.path), os.fstat(self._fd))

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from ``start`` to ``stop`` in blocks; fewer where the file is shorter."""
        while start < stop:
            os.lseek(self._fd, start, os.SEEK_SET)  # what is appended goes to the end all the same
            block = os.read(self._fd, min(_BLOCK_BYTES, stop - start))
            if not block:
                return
            yield block
            start += len(block)

    def crc(self, start: int, stop: int, crc: int = 0) -> int:
        """CRC-32 of the bytes from ``start`` to ``stop``, continued from ``crc``."""
        for block in self.read(start, stop):
            crc = zlib.crc32(block, crc)
        return crc

    def close(self) -> None:
        """May be done twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _locked(fd: int) -> bool:
    """Lock an open file as long as it is open, with what the system has for it."""
    try:
        fcntl = import_module("fcntl")
    except ModuleNotFoundError:
        return _locked_by_windows(fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _locked_by_windows(fd: int) -> bool:
    try:
        msvcrt = import_module("msvcrt")
    except ModuleNotFoundError:
        raise BulkError(
            "submit keeps a second run from RESULTS by locking a file, and this Python has neither "
            "fcntl (Linux, macOS) nor msvcrt (Windows) for it: run it on one of those"
        ) from None
    os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    return True


class Disk:
    """Files as the operating system keeps them."""

    def open(self, path: Path) -> AppendFile:
        return AppendFile(path)

    def overwrite(self, path: Path, data: bytes) -> None:
        """Replace the first bytes of a file, durably."""
        with path.open("r+b") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def replace(self, source: Path, target: Path) -> None:
        """Move a finished file into place, durably."""
        with source.open("r+b") as file:  # Windows syncs only what may be written
            os.fsync(file.fileno())
        source.replace(target)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def discard(self, file: AppendFile) -> None:
        """Close a file and remove it. Its lock is held to the end where an open file can be removed."""
        try:
            self.remove(file.path)
        except PermissionError:  # Windows removes nothing that is open
            file.close()
            self.remove(file.path)
        file.close()
