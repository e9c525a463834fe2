"""What one run is asked to do, and how a file is known again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.bulk.errors import InputError
from router.sdk.deadline import Budget

_SAMPLE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Order:
    """One bulk run. ``budget`` is for all of FILE together; ``header`` says whether a .csv begins with names.

    Neither the budget nor ``concurrency`` changes what is computed.
    """

    model: str
    source: Path
    results: Path
    budget: Budget
    variant: str | None = None
    outputs: tuple[str, ...] = ()
    rows_per_request: int = 64
    concurrency: int = 16
    header: bool | None = None

    def identity(self) -> dict[str, Any]:
        """What must stay the same for a run to be continued, by names that mean something to a person."""
        return {
            "FILE": fingerprint(self.source),
            "model": self.model,
            "--variant": self.variant,
            "--output": list(self.outputs),
            "--rows-per-request": self.rows_per_request,
            "--header": self.header,
        }


def fingerprint(path: Path) -> str:
    """Size, time of change and a digest of both ends: a file of any length is known again at once."""
    try:
        stat = path.stat()
        with path.open("rb") as file:
            digest = hashlib.blake2b(file.read(_SAMPLE_BYTES), digest_size=12)
            file.seek(max(0, stat.st_size - _SAMPLE_BYTES))
            digest.update(file.read(_SAMPLE_BYTES))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    return f"{stat.st_size} bytes of {stat.st_mtime_ns}, {digest.hexdigest()}"
