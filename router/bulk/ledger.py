"""The ledger beside RESULTS: which requests the server holds, and which rows are written.

Append-only JSON lines. A line is in the ledger only after what it says is true, so whatever instant the
process dies at, an older truth is left. Lines:

    {"ledger": 1, "run": "...", "plan": {...}}              first: what this run is
    {"job": "ID", "first": 0, "last": 63, "try": 0}         the server holds these rows by this id
    {"rows": 64, "at": 5120, "failed_at": 0, "failed": 0, "crc": 1, "layout": [...]}
                                                            rows before 64 are in RESULTS up to byte 5120
    {"synced": true}                                        and everything up to here is on the disk itself
    {"finished": true}                                      RESULTS is whole; only cleaning up is left
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from router.bulk.disk import AppendFile
from router.bulk.errors import LedgerError

VERSION = 1
Layout = tuple[tuple[str, str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Written:
    """Rows before ``rows`` are done: answers in RESULTS up to byte ``at``, failures in their file likewise.

    ``crc`` is the CRC-32 of what this checkpoint added to RESULTS, then to the failures. ``failed``
    counts failed rows so far. ``layout`` is that of the outputs, once it is known.
    """

    rows: int = 0
    at: int = 0
    failed_at: int = 0
    failed: int = 0
    crc: int = 0
    layout: Layout | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "at": self.at,
            "failed_at": self.failed_at,
            "failed": self.failed,
            "crc": self.crc,
            "layout": self.layout,
        }

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Written:
        layout = line["layout"]
        if layout is not None:
            layout = tuple((name, dtype, tuple(shape)) for name, dtype, shape in layout)
        return cls(line["rows"], line["at"], line["failed_at"], line["failed"], line["crc"], layout)


@dataclass(frozen=True, slots=True)
class SubmittedRequest:
    """A request that the server has taken, and how many times these rows had to be asked anew before."""

    id: str
    tries: int


class Ledger:
    """One run's ledger, read and continued. Its file is locked while this process lives."""

    def __init__(self, file: AppendFile, path: Path, plan: Mapping[str, Any]) -> None:
        self._file, self._path = file, path
        self.submitted: dict[tuple[int, int], SubmittedRequest] = {}
        self.written: list[Written] = [Written()]
        self.synced = 0  # index in `written` of the last that is known to be on the disk
        self.finished = False
        self.resumed = False
        self.run = self._read(plan) or self._begin(plan)

    def _begin(self, plan: Mapping[str, Any]) -> str:
        run = secrets.token_hex(8)
        self._file.truncate(0)
        self._say({"ledger": VERSION, "run": run, "plan": plan})
        # Keys come from the run: nothing may be sent by a run that a crash could make forgotten.
        self._file.sync()
        return run

    def _read(self, plan: Mapping[str, Any]) -> str | None:
        """What an earlier process left, into this object. None: nothing. Raises LedgerError."""
        content = b"".join(self._file.read(0, self._file.size))
        whole = content.rfind(b"\n") + 1  # the rest is a line that its process died over
        lines = content[:whole].splitlines()
        if not lines:
            return None
        self._file.truncate(whole)
        try:
            head = orjson.loads(lines[0])
            version, run, before = head["ledger"], head["run"], head["plan"]
            for line in lines[1:]:
                self._take(orjson.loads(line))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            raise LedgerError(
                f"{self._path} is damaged; --restart begins anew and replaces the results"
            ) from None
        if version != VERSION:
            raise LedgerError(f"{self._path} was written by another version; --restart begins anew")
        self.resumed = bool(self.submitted) or len(self.written) > 1
        changed = _changed(before, plan)
        if changed and not self.resumed:
            return None  # nothing came of that run: there is nothing to lose
        if changed:
            raise LedgerError(
                f"{self._path} belongs to an unfinished run with another {changed}. Give what it began "
                "with to go on, or --restart to begin anew and replace the results"
            )
        return str(run)

    def _take(self, line: Mapping[str, Any]) -> None:
        if "job" in line:
            self.submitted[line["first"], line["last"]] = SubmittedRequest(line["job"], line["try"])
        elif "rows" in line:
            self.written.append(Written.from_json(line))
        elif "synced" in line:
            self.synced = len(self.written) - 1
        elif "finished" in line:
            self.finished = True
        else:
            raise ValueError(line)

    def key(self, first: int, last: int, tries: int) -> str:
        """The idempotency key of a request: the same in every process that continues this run."""
        return f"bulk-{hashlib.blake2b(self.run.encode(), digest_size=12).hexdigest()}-{first}-{last}-{tries}"

    def keep(self, written: Written) -> None:
        """Go on from this checkpoint; forget what lies behind it."""
        self.written = [written]
        self.synced = 0
        self.submitted = {
            rows: request for rows, request in self.submitted.items() if rows[1] >= written.rows
        }

    def accepted(self, rows: tuple[int, int], request: SubmittedRequest) -> None:
        self.submitted[rows] = request
        self._say({"job": request.id, "first": rows[0], "last": rows[1], "try": request.tries})

    def checkpoint(self, written: Written) -> None:
        """Call it after what it says was appended to RESULTS."""
        self._say(written.to_json())
        self.keep(written)

    def sync(self) -> None:
        """Call it after RESULTS was synced."""
        self._say({"synced": True})
        self._file.sync()

    def finish(self) -> None:
        self._say({"finished": True})
        self._file.sync()
        self.finished = True

    def _say(self, line: Mapping[str, Any]) -> None:
        self._file.append(orjson.dumps(line) + b"\n")


def _changed(before: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """Names of what differs, with what it was; empty where nothing does."""
    # Through JSON, as the other came that way.
    plan = orjson.loads(orjson.dumps(plan))
    changed = [name for name in plan if plan[name] != before.get(name)]
    return ", ".join(f"{name} (it was {_as_text(before.get(name))})" for name in changed)


def _as_text(value: object) -> str:
    return "none" if value is None else str(value)
