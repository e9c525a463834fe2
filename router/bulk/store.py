"""What a run keeps on disk: RESULTS, the failed rows beside it, and the ledger that makes it resumable."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from optimizers.tensors import TensorSpec
from router.bulk.chunks import Settled
from router.bulk.disk import AppendFile, Disk
from router.bulk.errors import LedgerError
from router.bulk.ledger import Layout, Ledger, Written
from router.bulk.result_format import ResultFormat, layout_of, layout_of_specs
from router.bulk.results import result_format

#: What the death of the machine (not of the process) may cost is fetched from the server again.
_SYNC_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Paths:
    """The files of one run, all beside RESULTS."""

    results: Path

    def _beside(self, suffix: str) -> Path:
        return self.results.with_name(self.results.name + suffix)

    @property
    def failed(self) -> Path:
        return self._beside(".failed.jsonl")

    @property
    def ledger(self) -> Path:
        return self._beside(".ledger")

    @property
    def spool(self) -> Path:
        return self._beside(".part")

    def all(self) -> tuple[Path, ...]:
        return self.results, self.failed, self.spool, self.ledger


class Store:
    """Opened for one run; ``written`` says how far it is. Raises LedgerError where it cannot go on."""

    def __init__(
        self,
        paths: Paths,
        plan: Mapping[str, Any],
        outputs: Sequence[TensorSpec],
        *,
        disk: Disk,
        restart: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.paths, self._disk, self._outputs, self._clock = paths, disk, outputs, clock
        self._format: ResultFormat = result_format(paths.results, outputs)
        self._data_path = paths.spool if self._format.spooled else paths.results
        self._lock = file = self._claim(restart)
        self._files: list[AppendFile] = [file]
        try:
            self.ledger = Ledger(file, paths.ledger, plan)
            self._data, self._failed = disk.open(self._data_path), disk.open(paths.failed)
            self._files += [self._data, self._failed]
            self.written = self._continue()
        except BaseException:
            self.close()
            raise
        self._synced_s = clock()

    def _claim(self, restart: bool) -> AppendFile:
        """The ledger's file, locked; with ``restart`` after clearing what was there."""
        if not restart and not self.paths.ledger.exists() and self.paths.results.exists():
            raise LedgerError(f"{self.paths.results} exists already; --restart replaces it")
        file = self._disk.open(self.paths.ledger)
        if not file.lock():
            file.close()
            raise LedgerError(f"another process is writing {self.paths.results}; wait for it or stop it")
        if restart:
            # The ledger is emptied, not removed: its lock is on this very file.
            file.truncate(0)
            for path in self.paths.all()[:-1]:
                self._disk.remove(path)
        return file

    def _continue(self) -> Written:
        """The last checkpoint that the files really hold; they are cut there."""
        if self.ledger.finished:
            return self.ledger.written[-1]
        checkpoints = self.ledger.written
        last = checkpoints[self.ledger.synced]
        if self._data.size < last.at or self._failed.size < last.failed_at:
            raise LedgerError(
                f"{self._data_path} or {self.paths.failed} is shorter than {self.paths.ledger} says; "
                "--restart begins anew"
            )
        # Lines after the last sync are true unless the machine itself went down: look.
        for checkpoint in checkpoints[self.ledger.synced + 1 :]:
            crc = self._failed.crc(
                last.failed_at, checkpoint.failed_at, self._data.crc(last.at, checkpoint.at)
            )
            whole = self._data.size >= checkpoint.at and self._failed.size >= checkpoint.failed_at
            if not whole or crc != checkpoint.crc:
                break
            last = checkpoint
        self._data.truncate(last.at)
        self._failed.truncate(last.failed_at)
        self.ledger.keep(last)
        return last

    def append(self, chunk: Settled) -> None:
        """Write the next chunk of rows. Raises BulkError for answers that the format cannot hold."""
        before = self.written
        layout, crc = before.layout, 0
        if layout is None and chunk.parts and self._format.one_layout:
            layout = layout_of(chunk.parts[0].outputs)
        pieces = []
        if layout is not None or not self._format.one_layout:
            pieces.append(self._format.encode(chunk, layout or ()))
        if layout is not None and before.layout is None:
            # Encoded first: what cannot be encoded must not leave half of itself behind.
            for piece in self._format.prologue(layout, chunk.start):
                crc = self._add(self._data, piece, crc)
        for piece in pieces:
            crc = self._add(self._data, piece, crc)
        lines = [orjson.dumps({"row": row, "reason": reason}) + b"\n" for row, reason in chunk.failures]
        crc = self._add(self._failed, b"".join(lines), crc)
        failed = before.failed + len(chunk.failures)
        self.written = Written(chunk.stop, self._data.size, self._failed.size, failed, crc, layout)
        self.ledger.checkpoint(self.written)
        if self._clock() - self._synced_s >= _SYNC_EVERY_S:
            self.sync()

    @staticmethod
    def _add(file: AppendFile, data: bytes, crc: int) -> int:
        if data:
            file.append(data)
        return zlib.crc32(data, crc)

    def sync(self) -> None:
        self._data.sync()
        self._failed.sync()
        self.ledger.sync()
        self._synced_s = self._clock()

    def finish(self) -> None:
        """RESULTS is whole: put it into its final form and remove what only resuming needs."""
        if not self.ledger.finished:
            layout = self.written.layout
            if layout is None and self._format.one_layout:
                layout = self._unanswered()
            self._format.finish(
                self._disk, self._data_path, self.paths.results, self.written.rows, layout or ()
            )
            self.sync()
            self.ledger.finish()
        if self._format.spooled:
            self._disk.discard(self._data)
        if self.written.failed == 0:
            self._disk.discard(self._failed)
        self._disk.discard(self._lock)

    def _unanswered(self) -> Layout:
        """No row was answered: a file that says so in its own format, laid out as the model says."""
        layout = layout_of_specs(self._outputs)
        self._data.truncate(0)
        for piece in self._format.prologue(layout, self.written.rows):
            self._data.append(piece)
        return layout

    def close(self) -> None:
        for file in self._files:
            file.close()
        self._files = []
