"""The few things that bulk work does to files, in one place, so that tests can stop the world at any."""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

_BLOCK_BYTES = 1 << 20


class AppendFile:
    """A file that grows. What was appended outlives this process, what was synced the machine's fall too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
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
        """Keep other processes from locking it while this one lives. False: one has it."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        # One that another process has just finished with and removed is nobody's any more.
        return os.path.exists(self.path) and os.path.samestat(os.stat(self.path), os.fstat(self._fd))

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from ``start`` to ``stop`` in blocks; fewer where the file is shorter."""
        while start < stop and (block := os.pread(self._fd, min(_BLOCK_BYTES, stop - start), start)):
            yield block
            start += len(block)

    def crc(self, start: int, stop: int, crc: int = 0) -> int:
        """CRC-32 of the bytes from ``start`` to ``stop``, continued from ``crc``."""
        for block in self.read(start, stop):
            crc = zlib.crc32(block, crc)
        return crc

    def close(self) -> None:
        os.close(self._fd)


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
        with source.open("rb") as file:
            os.fsync(file.fileno())
        source.replace(target)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
