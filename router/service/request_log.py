"""The router's log of requests: one JSON object a line, without payload or key.

What went well is sampled, since a line costs what a decision costs; what failed, was late or was not let in
is written, up to so many lines a second. The file lies beside Serve's own logs: the Ray dashboard shows it.
"""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

#: Failures beyond this are counted, not written: under overload the log must not become the load.
MAX_FAILURES_PER_S = 100
_FILE_BYTES, _FILES = 16 << 20, 4
_BUFFERED_LINES = 500


class RequestLog:
    """Chooses and writes lines: ``share`` of the requests that went well; ``write`` takes one line."""

    def __init__(
        self,
        share: Callable[[], float],
        write: Callable[[str], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._share, self._write, self._now = share, write, now
        self._due = 0.0
        self._second, self._failures, self._left_out = 0, 0, 0

    def wants(self, well: bool) -> bool:
        """Whether to write about the request that has just ended, well or not."""
        if well:
            self._due += self._share()
            if self._due < 1.0:
                return False
            self._due -= 1.0
            return True
        second = int(self._now())
        if second != self._second:
            self._second, self._failures = second, 0
        self._failures += 1
        if self._failures > MAX_FAILURES_PER_S:
            self._left_out += 1
            return False
        return True

    def write(self, **fields: Any) -> None:
        """One line; what is None is left out."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="milliseconds")
        }
        line |= {name: value for name, value in fields.items() if value is not None}
        if self._left_out:
            line["left_out"], self._left_out = self._left_out, 0
        self._write(orjson.dumps(line).decode())


class LogFile:
    """A rotating file that is written in bundles, at the latest a second after the line."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / name
        rotating = logging.handlers.RotatingFileHandler
        file = rotating(self.path, maxBytes=_FILE_BYTES, backupCount=_FILES, delay=True)
        self._handler = logging.handlers.MemoryHandler(_BUFFERED_LINES, logging.CRITICAL, file)

    def write(self, line: str) -> None:
        self._handler.handle(logging.makeLogRecord({"msg": line, "levelno": logging.INFO}))

    async def flush(self, every_s: float = 1.0) -> None:
        """Write what is held back, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            self._handler.flush()

    def close(self) -> None:
        target = self._handler.target
        self._handler.close()
        if target is not None:
            target.close()


def serve_folder() -> Path | None:
    """Where Serve keeps this replica's log, which the Ray dashboard lists; None outside of Serve."""
    for handler in logging.getLogger("ray.serve").handlers:
        target = getattr(handler, "target", handler)
        if isinstance(target, logging.FileHandler):
            return Path(target.baseFilename).parent
    return None


def file_name() -> str:
    """A name that no other process on this machine has."""
    return f"hybrid_requests_{os.getpid()}.jsonl"
