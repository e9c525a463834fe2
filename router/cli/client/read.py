"""What VALUE of ``hybrid-router infer`` stands for: inline, from a file or from standard input."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import click
import numpy as np

from optimizers.tensors import Array
from router.bulk import chunks
from router.bulk.source import npy_problem, open_source
from router.sdk.codec import ModelInfo
from router.sdk.values import read_json

#: Files of rows; any other is JSON or text.
TABLES = (".csv", ".jsonl", ".ndjson", ".parquet")
#: One request's rows; the server has a limit of its own. More is what ``submit`` is for.
MAX_ROWS = 10_000
_NPY = b"\x93NUMPY"


def given(value: str) -> Array | Path | str:
    """An array, a file of rows that only the model's inputs tell how to read, or text to look into."""
    if value == "-":
        if sys.stdin.isatty():
            raise click.UsageError("give a VALUE, @FILE, or pipe one in")
        return _content(sys.stdin.buffer.read(), "standard input")
    if not value.startswith("@"):
        return value
    path = Path(value[1:])
    try:
        if path.suffix.lower() in TABLES:
            path.open("rb").close()
            return path
        return _content(path.read_bytes(), str(path))
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {error.strerror or error}") from None


def _content(data: bytes, where: str) -> Array | str:
    try:
        if data.startswith(_NPY):
            array: Array = np.load(io.BytesIO(data), allow_pickle=False)
            return array
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise click.UsageError(f"{where} cannot be read: neither text in UTF-8 nor a .npy array") from None
    except (ValueError, EOFError) as error:
        raise click.UsageError(f"{where} cannot be read: {npy_problem(error)}") from None


def inputs(value: Array | Path | str, model: ModelInfo, header: bool | None = None) -> object:
    """What the SDK takes for ``model``; ``header`` is for a .csv.

    Raises click's UsageError, or an InputError for a file of rows.
    """
    if isinstance(value, Path):
        return _rows(value, model, header)
    if header is not None:
        raise click.UsageError("--header is for @FILE.csv")
    return _parsed(value, model) if isinstance(value, str) else value


def _rows(path: Path, model: ModelInfo, header: bool | None) -> object:
    """All rows of a file as the one batch of a request."""
    source = open_source(path, model, header).chunks(0, MAX_ROWS)
    chunk = next(source, None)
    if chunk is None:
        raise click.UsageError(f"{path} has no rows")
    if next(source, None) is not None:
        raise click.UsageError(
            f"{path} has more than {MAX_ROWS:,} rows: hybrid-router submit takes any number"
        )
    batches, failures = chunks.arrange(chunk, model)
    if failures:
        row, reason = failures[0]
        raise click.UsageError(f"{path}: row {row} (of 0 to {chunk.count - 1}): {reason}")
    if len(batches) != 1:
        raise click.UsageError(f"{path}: its rows differ in shape: hybrid-router submit takes them")
    return batches[0].inputs()


def _parsed(text: str, model: ModelInfo) -> object:
    """JSON where it is JSON that the model may take; else, for a model that takes text, the text itself."""
    takes_text = len(model.inputs) == 1 and model.inputs[0].datatype == "BYTES"
    try:
        value = read_json(text)
    except ValueError as error:
        if takes_text:
            return text.rstrip("\r\n")
        hint = f"; the file of that name is @{text}" if _is_file(text) else ""
        raise click.UsageError(
            f"the value is not JSON ({error}) and model {model.name!r} takes no text{hint}"
        ) from None
    if takes_text and not isinstance(value, str | list | dict):
        return text.rstrip("\r\n")
    return value


def _is_file(text: str) -> bool:
    try:
        return len(text) < 1000 and Path(text).is_file()
    except (OSError, ValueError):
        return False
