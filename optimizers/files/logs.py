"""Log files that processes append to from one run to the next, bounded in size."""

from __future__ import annotations

from pathlib import Path

LONG_LOG_BYTES = 8 << 20


def rotate(log: Path) -> None:
    """Rename a log of more than `LONG_LOG_BYTES` to ``NAME.1``, over an older one, so that a new one begins.

    Call it before the log is opened, so that what a crash left there survives the next start. Raises OSError.
    """
    if log.exists() and log.stat().st_size > LONG_LOG_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))
